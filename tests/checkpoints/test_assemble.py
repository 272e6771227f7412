"""Pretrained parts become one model: their weights in their places, a smaller vocabulary, fewer layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CLIPConfig, CLIPModel, LlamaConfig, PhiConfig, PreTrainedTokenizerFast, Qwen2Config

from salticid.checkpoints import assemble as assembling
from salticid.checkpoints.assemble import Parts, assemble, keep_layers
from salticid.checkpoints.efficientnet_lite import EFFICIENTNET_LITE_KEYS
from salticid.errors import CheckpointError, ConfigurationError, MissingExtraError
from salticid.models import EfficientNetLiteConfig, EfficientNetLiteModel

TEXTS = ["What is on the table?", "two red cups and a dog", "a dog on the beach"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "bos_token_id": 1}
LITE = {"model_type": "efficientnet_lite", "width_coefficient": 0.1, "depth_coefficient": 0.3, "image_size": 64, "classes": 3}
PADDED_ROWS = 7  # as Phi-2 and Qwen have: more rows than tokens


def save_language(folder: Path, config: type, late_special: bool = False, **options: Any) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[] if late_special else special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*TEXTS, "nothing of this is needed, nothing"] * 2, trainer)
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    torch.manual_seed(1)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer) + PADDED_ROWS, **{**SIZES, **ids, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's names, by the key table read backwards."""
    names = {
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "head.conv": "_conv_head",
        "head.norm": "_bn1",
        "classifier": "_fc",
        "expand.conv": "_expand_conv",
        "expand.norm": "_bn0",
        "depthwise.conv": "_depthwise_conv",
        "depthwise.norm": "_bn1",
        "project.conv": "_project_conv",
        "project.norm": "_bn2",
    }
    assert len(names) == len(EFFICIENTNET_LITE_KEYS)
    torch.manual_seed(2)
    state = {}
    for key, weight in (
        EfficientNetLiteModel(EfficientNetLiteConfig(**{k: v for k, v in LITE.items() if k != "model_type"})).state_dict().items()
    ):
        owner, leaf = key.rsplit(".", 1)
        block = owner.split(".")[:2] if owner.startswith("blocks.") else []
        part = owner.removeprefix(".".join(block) + ".") if block else owner
        state[".".join([*(f"_{name}" if name == "blocks" else name for name in block), names[part], leaf])] = weight
    path = tmp_path_factory.mktemp("vision") / "lite.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("llama"), LlamaConfig, num_key_value_heads=1, tie_word_embeddings=True)


def parts(lite_file: Path, language: Path, **changes: Any) -> Parts:
    values: dict[str, Any] = {"vision": LITE, "vision_weights": lite_file, "language": language, "image": "efficientnet_lite"}
    return Parts(**{**values, "model": {"template": "nano"}, **changes})


def test_weights_stand_in_their_places(lite_file: Path, llama: Path) -> None:
    model, processor = assemble(parts(lite_file, llama, seed=3))
    old = AutoModelForCausalLM.from_pretrained(llama)
    tokens = len(processor.tokenizer)
    assert model.config.text_config.vocab_size == tokens == old.config.vocab_size - PADDED_ROWS + 1
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>") == tokens - 1
    rows = old.get_input_embeddings().weight
    assert_close(model.get_input_embeddings().weight[:-1], rows[: tokens - 1], rtol=0, atol=0)
    assert_close(model.get_input_embeddings().weight[-1], rows.mean(dim=0))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    vision = torch.load(lite_file, weights_only=True)
    assert_close(model.vision_tower.model.stem.conv.weight.data, vision["_conv_stem.weight"], rtol=0, atol=0)
    ids = torch.tensor([processor.tokenizer("a dog on the beach")["input_ids"]])
    assert_close(model(input_ids=ids).logits[..., :-1], old(input_ids=ids).logits[..., : tokens - 1])
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_the_model_answers_a_photo(lite_file: Path, llama: Path) -> None:
    model, processor = assemble(parts(lite_file, llama))
    inputs = processor(Image.new("RGB", (30, 20), "red"), "<image>What is on the table?<|im_start|>")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert model.eval().generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_the_seed_makes_the_connector(lite_file: Path, llama: Path) -> None:
    one, same, other = (assemble(parts(lite_file, llama, seed=seed))[0].connector.layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("config", "late"), [(LlamaConfig, False), (Qwen2Config, True), (PhiConfig, True)])
def test_a_smaller_vocabulary_computes_the_same(lite_file: Path, tmp_path: Path, config: type, late: bool) -> None:
    """With specials in front or, as Qwen and Phi have them, behind all words, where their ids no longer exist afterwards."""
    language = save_language(tmp_path, config, late_special=late, num_key_value_heads=2)
    model, processor = assemble(parts(lite_file, language, first_merges=5, vocabulary_texts=TEXTS))
    whole, plain = assemble(parts(lite_file, language))
    assert len(processor.tokenizer) == model.config.text_config.vocab_size < len(plain.tokenizer) - 5
    for text in [*TEXTS, "zebra 漢字 🐕"]:
        assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
    for text in [f"{TEXTS[0]}<|im_start|>{TEXTS[1]}<|im_end|>", TEXTS[2]]:
        ids, old_ids = (torch.tensor([p.tokenizer(text)["input_ids"]]) for p in (processor, plain))
        kept = [
            plain.tokenizer.convert_tokens_to_ids(processor.tokenizer.convert_ids_to_tokens(index))
            for index in range(len(processor.tokenizer))
        ]
        assert torch.tensor(kept)[ids].equal(old_ids)
        assert_close(model.eval()(input_ids=ids).logits, whole.eval()(input_ids=old_ids).logits[..., kept])
    specials = {"bos": "<|im_start|>", "eos": "<|im_end|>"}
    for name, token in specials.items():
        expected = processor.tokenizer.convert_tokens_to_ids(token)
        assert getattr(model.config.text_config, f"{name}_token_id") == getattr(processor.tokenizer, f"{name}_token_id") == expected
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id < len(processor.tokenizer)


def test_the_end_of_an_answer_learns_though_it_pads_too(lite_file: Path, llama: Path) -> None:
    model, processor = assemble(parts(lite_file, llama))
    end = processor.tokenizer.eos_token_id
    assert processor.tokenizer.pad_token_id == end
    model.language_model.lm_head.weight = torch.nn.Parameter(model.language_model.lm_head.weight.detach().clone())
    model(input_ids=torch.tensor([[5, end, 6, 7]]), labels=torch.tensor([[5, end, 6, 7]])).loss.backward()
    assert model.get_input_embeddings().weight.grad[end].abs().sum() > 0


def test_a_placeholder_that_the_tokenizer_has_already(lite_file: Path, llama: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    language = Path(shutil.copytree(llama, tmp_path / "language"))
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_tokens(["[vqa]"], special_tokens=True)
    tokenizer.save_pretrained(language)
    rows = AutoModelForCausalLM.from_pretrained(language).get_input_embeddings().weight
    model, processor = assemble(parts(lite_file, language))
    assert_close(model.get_input_embeddings().weight, rows[: len(tokenizer)])
    assert model.config.image_token_id == len(tokenizer) - 2
    shrunk, processor = assemble(parts(lite_file, language, first_merges=5))
    assert shrunk.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert_close(shrunk.get_input_embeddings().weight[shrunk.config.image_token_id], rows[len(tokenizer) - 2])


def test_layers_that_are_kept_are_the_old_ones(lite_file: Path, llama: Path) -> None:
    model, _ = assemble(parts(lite_file, llama, language_layers=[0, 2]))
    old = AutoModelForCausalLM.from_pretrained(llama).model.layers
    assert model.config.text_config.num_hidden_layers == len(model.language_model.model.layers) == 2
    for new, before in zip(model.language_model.model.layers, (old[0], old[2]), strict=True):
        assert torch.equal(new.mlp.up_proj.weight, before.mlp.up_proj.weight)
    ids = torch.tensor([[4, 5, 6, 7]])
    plain = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert model.generate(input_ids=ids, max_new_tokens=4, do_sample=False).equal(plain)  # the cache counts layers anew


def test_kept_layers_keep_their_kind() -> None:
    config = Qwen2Config(**SIZES, vocab_size=20, layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=4)
    language = AutoModelForCausalLM.from_config(config)
    keep_layers(language, [1, 2])
    assert language.config.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in language.model.layers] == [0, 1]
    for wrong in ([], [0, 0], [2], [-1]):
        with pytest.raises(ConfigurationError, match=r"language_layers must be distinct numbers from 0 to 1; got \["):
            keep_layers(language, wrong)


def test_a_tower_out_of_a_folder_with_more_in_it(llama: Path, tmp_path: Path) -> None:
    """Published CLIP weights come with the text model beside the tower."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 28, "patch_size": 14}
    torch.manual_seed(4)
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config={**small, "vocab_size": 30, "eos_token_id": 2}))
    clip.save_pretrained(tmp_path)
    tower = {"model_type": "clip_vision_model", **vision}
    model, processor = assemble(parts(tmp_path, llama, vision=tower, image="clip", model={"vision_layers": [-2]}))
    expected = clip.vision_model.encoder.layers[1].mlp.fc1.weight
    assert torch.equal(model.vision_tower.model.encoder.layers[1].mlp.fc1.weight, expected)
    assert processor.image_tokens == 4
    with pytest.raises(CheckpointError, match="does not fit the vision tower clip_vision_model"):
        assemble(parts(tmp_path, llama, vision={**tower, "image_size": 56}, image="clip"))


def test_what_is_missing_or_foreign_is_named(lite_file: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no language model at"):
        assemble(parts(lite_file, tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no vision weights at"):
        assemble(parts(tmp_path / "nowhere.pth", llama))
    with pytest.raises(CheckpointError, match="cannot read a language model from"):
        assemble(parts(lite_file, tmp_path))
    with pytest.raises(CheckpointError, match="cannot read a vision tower from"):
        assemble(parts(tmp_path, llama))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text.pth does not fit the vision tower"):
        assemble(parts(tmp_path / "text.pth", llama))
    with pytest.raises(CheckpointError, match=r"lite.pth does not fit the vision tower efficientnet_lite"):
        assemble(parts(lite_file, llama, vision={**LITE, "classes": 4}))
    with pytest.raises(ConfigurationError, match=r"efficientnet_lite has no option image_sise; known: .*image_size"):
        assemble(parts(lite_file, llama, vision={**LITE, "image_sise": 32}))
    with pytest.raises(ConfigurationError, match="has no option 'templet'"):
        assemble(parts(lite_file, llama, model={"templet": "nano"}))


def test_a_language_model_without_some_of_its_weights(lite_file: Path, llama: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    language = Path(shutil.copytree(llama, tmp_path / "language"))
    weights = load_file(language / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, language / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of the language model, model.layers.1.mlp.up_proj.weight"):
        assemble(parts(lite_file, language))


def test_norms_can_start_fitted(lite_file: Path, llama: Path) -> None:
    norms = {"query": True, "key": True, "attention_output": True}
    identities, _ = assemble(parts(lite_file, llama, model={"template": "nano", "norms": norms}))
    fitted, _ = assemble(parts(lite_file, llama, model={"template": "nano", "norms": norms}, fit_norms=True))
    moved = {name for name, weight in fitted.state_dict().items() if not torch.equal(weight, identities.state_dict()[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_layernorm", "k_layernorm", "output_layernorm"}


def test_fitting_norms_that_are_not_there_is_refused(lite_file: Path, llama: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"fit_norms needs norms to fit; name them in model\.norms"):
        assemble(parts(lite_file, llama, fit_norms=True))


def test_a_gguf_file_without_the_package_that_reads_it(tmp_path: Path, lite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(assembling, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"reading model\.gguf needs gguf, .*pip install 'salticid\[convert\]'"):
        assemble(Parts(vision=LITE, vision_weights=lite_file, language=tmp_path / "model.gguf", image="efficientnet_lite"))
