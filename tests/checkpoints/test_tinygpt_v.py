"""Tiny files with upstream's names: what the converted model computes, against the published mathematics written out below."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PhiConfig, PreTrainedTokenizerFast

from salticid.checkpoints.key_table import Drop
from salticid.checkpoints.load import load_model, load_processor
from salticid.checkpoints.tinygpt_v import TinyGPTVOptions, convert_tinygpt_v, interpolate_positions
from salticid.checkpoints.tinygpt_v_export import export_tinygpt_v
from salticid.checkpoints.tinygpt_v_files import regroup_heads, whole_name
from salticid.checkpoints.tinygpt_v_keys import QFORMER_RULES, vision_rules
from salticid.errors import CheckpointError

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
BLOCKS, LAYERS, HEADS, WIDTH, ROWS, QUERIES, RANK = 2, 2, 2, 16, 260, 3, 2
OPTIONS = TinyGPTVOptions(vision_layers=BLOCKS, vision_heads=HEADS, qformer_heads=HEADS)
PEFT = "llama_model.base_model.model.model.layers."
State = dict[str, Tensor]


class Files(NamedTuple):
    vision: Path
    qformer: Path
    language: Path
    checkpoint: Path


def linear(state: State, name: str, rows: int, columns: int, bias: bool = True) -> None:
    state[f"{name}.weight"] = torch.randn(rows, columns) / columns**0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(rows) * 0.1


def norm(state: State, name: str, width: int, bias: bool = True) -> None:
    state[f"{name}.weight"] = 1 + torch.randn(width) * 0.1
    if bias:
        state[f"{name}.bias"] = torch.randn(width) * 0.1


def vision_file() -> State:
    state: State = {"cls_token": torch.randn(1, 1, WIDTH), "pos_embed": torch.randn(1, 10, WIDTH), "norm.weight": torch.ones(WIDTH)}
    state["norm.bias"] = torch.zeros(WIDTH)
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = torch.randn(WIDTH, 3, 4, 4) / 7, torch.randn(WIDTH)
    for index in range(BLOCKS + 1):
        block = f"blocks.{index}."
        norm(state, block + "norm1", WIDTH)
        norm(state, block + "norm2", WIDTH)
        linear(state, block + "attn.qkv", 3 * WIDTH, WIDTH, bias=False)
        state[block + "attn.q_bias"], state[block + "attn.v_bias"] = torch.randn(WIDTH), torch.randn(WIDTH)
        linear(state, block + "attn.proj", WIDTH, WIDTH)
        linear(state, block + "mlp.fc1", 20, WIDTH)
        linear(state, block + "mlp.fc2", WIDTH, 20)
    return state


def qformer_file() -> State:
    state: State = {"query_tokens": torch.randn(1, QUERIES, 8)}
    norm(state, "ln_vision", WIDTH)
    norm(state, "Qformer.bert.embeddings.LayerNorm", 8)
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for index in range(2):
        for kind, width in (("attention", 8), *((("crossattention", WIDTH),) if index % 2 == 0 else ())):
            part = f"Qformer.bert.encoder.layer.{index}.{kind}."
            linear(state, part + "self.query", 8, 8)
            linear(state, part + "self.key", 8, width)
            linear(state, part + "self.value", 8, width)
            linear(state, part + "output.dense", 8, 8)
            norm(state, part + "output.LayerNorm", 8)
        for kind in ("intermediate_query", "intermediate"):
            linear(state, f"Qformer.bert.encoder.layer.{index}.{kind}.dense", 12, 8)
        for kind in ("output_query", "output"):
            linear(state, f"Qformer.bert.encoder.layer.{index}.{kind}.dense", 8, 12)
            norm(state, f"Qformer.bert.encoder.layer.{index}.{kind}.LayerNorm", 8)
    linear(state, "t5_proj", 5, 8)
    state["Qformer.cls.predictions.bias"] = torch.zeros(7)
    return state


def language_weights(norms: bool) -> State:
    state: State = {"model.embed_tokens.weight": torch.randn(ROWS, WIDTH)}
    norm(state, "model.final_layernorm", WIDTH)
    linear(state, "lm_head", ROWS, WIDTH)
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        norm(state, layer + "input_layernorm", WIDTH)
        linear(state, layer + "self_attn.query_key_value", 3 * WIDTH, WIDTH)
        linear(state, layer + "self_attn.dense", WIDTH, WIDTH)
        linear(state, layer + "mlp.fc1", 24, WIDTH)
        linear(state, layer + "mlp.fc2", WIDTH, 24)
        if norms:
            norm(state, layer + "self_attn.q_layernorm", WIDTH // HEADS)
            norm(state, layer + "self_attn.k_layernorm", WIDTH // HEADS)
            norm(state, layer + "post_layernorm", WIDTH, bias=False)
    return state


def stage_checkpoint(stage: int, qformer: State) -> State:
    state: State = {}
    for index in range(LAYERS):
        for module, rows in (("self_attn.query_key_value", 3 * WIDTH), ("self_attn.dense", WIDTH)):
            state[f"{PEFT}{index}.{module}.lora_A.weight"] = torch.randn(RANK, WIDTH) * 0.2
            state[f"{PEFT}{index}.{module}.lora_B.weight"] = torch.randn(rows, RANK) * 0.2
        norm(state, f"{PEFT}{index}.self_attn.q_layernorm", WIDTH // HEADS, bias=False)
        norm(state, f"{PEFT}{index}.self_attn.k_layernorm", WIDTH // HEADS, bias=False)
        norm(state, f"{PEFT}{index}.input_layernorm", WIDTH, bias=False)
        norm(state, f"{PEFT}{index}.post_layernorm", WIDTH, bias=False)
    linear(state, "llama_proj", 10, 8)
    linear(state, "llama_proj2", WIDTH, 10)
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    if stage == 4:
        trained = [key for key in qformer if key.startswith(("Qformer.bert.encoder", "query")) and ".intermediate." not in key]
        state |= {key: qformer[key] + 0.01 for key in trained if ".output.dense" not in key or "attention" in key}
        state = {key: value for key, value in state.items() if ".output.LayerNorm" not in key or "attention" in key}
    return state


def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def split_layout(fused: State) -> State:
    """Today's Phi-2, from upstream's fused heads."""
    split = {}
    for key, tensor in fused.items():
        if "query_key_value" in key:
            for name, part in zip("qkv", regroup_heads(tensor, HEADS).chunk(3), strict=True):
                split[key.replace("query_key_value", f"{name}_proj")] = part.clone()
        else:
            split[key] = tensor
    return split


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Files]:
    def write(stage: int = 4, norms: bool = True, split: bool = False, rows: int = ROWS) -> Files:
        torch.manual_seed(stage)
        folder = tmp_path_factory.mktemp("upstream")
        files = Files(folder / "eva_vit_g.pth", folder / "blip2.pth", folder / "phi", folder / "checkpoint_4.pth")
        qformer, words = qformer_file(), language_weights(norms)
        torch.save(vision_file(), files.vision)
        torch.save({"model": qformer}, files.qformer)
        torch.save({"model": stage_checkpoint(stage, qformer), "epoch": 4}, files.checkpoint)
        config = PhiConfig(
            vocab_size=rows,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            bos_token_id=256,
            eos_token_id=256,
        )
        config.save_pretrained(files.language)
        tokenizer().save_pretrained(files.language)
        words = {key: value[:rows] if value.shape[0] == ROWS else value for key, value in words.items()}
        save_file(split_layout(words) if split else words, files.language / "model.safetensors")
        return files

    return write


@pytest.fixture(scope="module")
def files(make: Callable[..., Files]) -> Files:
    return make()


def convert(files: Files, out: Path, merge: bool = False):
    return convert_tinygpt_v(**files._asdict(), out=out, merge=merge, options=OPTIONS)


def test_what_stage_1_starts_from(files: Files, tmp_path: Path) -> None:
    options = replace(OPTIONS, connector_width=6)
    report = convert_tinygpt_v(**{**files._asdict(), "checkpoint": None}, out=tmp_path / "start", options=options)
    assert (report.stage, report.template, report.lora) == (0, "tinygpt_v_caption", "none")
    model = load_model(tmp_path / "start")
    assert [tuple(layer.weight.shape) for layer in model.connector.layers] == [(6, 8), (WIDTH, 6)]
    assert torch.equal(model.connector.query_tokens, torch.load(files.qformer, weights_only=True)["model"]["query_tokens"])
    convert_tinygpt_v(**{**files._asdict(), "checkpoint": None}, out=tmp_path / "again", options=options)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("start", "again")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    with pytest.raises(CheckpointError, match="no BLIP-2 Q-Former file"):
        convert_tinygpt_v(None, files.language, files.vision, files.vision, tmp_path / "wrong", options=options)


def upstream_state(files: Files) -> State:
    """All tensors as upstream's `load_state_dict` would lay them over each other, in peft's newest names made whole."""
    state = {f"visual_encoder.{key}": value for key, value in torch.load(files.vision, weights_only=True).items()}
    state |= torch.load(files.qformer, weights_only=True)["model"]
    state |= {f"llama_model.{key}": value for key, value in load_file(files.language / "model.safetensors").items()}
    return state | {whole_name(key): value for key, value in torch.load(files.checkpoint, weights_only=True)["model"].items()}


# --- The published mathematics, B photos or rows, N patches, T tokens, D width ---


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def layer_norm(state: State, name: str, hidden: Tensor, eps: float) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def apply(state: State, name: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, state[f"{name}.weight"], state.get(f"{name}.bias"))


def reference_image_tokens(state: State, photos: Tensor) -> Tensor:
    patches = F.conv2d(photos, state["visual_encoder.patch_embed.proj.weight"], state["visual_encoder.patch_embed.proj.bias"], stride=4)
    hidden = torch.cat([state["visual_encoder.cls_token"].expand(len(photos), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    hidden = hidden + interpolate_positions(state["visual_encoder.pos_embed"], hidden.shape[1])
    for index in range(BLOCKS):
        block = f"visual_encoder.blocks.{index}."
        bias = torch.cat([state[block + "attn.q_bias"], torch.zeros(WIDTH), state[block + "attn.v_bias"]])
        qkv = F.linear(layer_norm(state, block + "norm1", hidden, 1e-6), state[block + "attn.qkv.weight"], bias).chunk(3, -1)
        hidden = hidden + apply(state, block + "attn.proj", attend(*qkv, HEADS))
        wide = F.gelu(apply(state, block + "mlp.fc1", layer_norm(state, block + "norm2", hidden, 1e-6)))
        hidden = hidden + apply(state, block + "mlp.fc2", wide)
    features = layer_norm(state, "ln_vision", hidden, 1e-5)

    queries = layer_norm(state, "Qformer.bert.embeddings.LayerNorm", state["query_tokens"], 1e-12).expand(len(photos), -1, -1)
    for index in range(2):
        layer = f"Qformer.bert.encoder.layer.{index}."
        for kind in ("attention", "crossattention")[: 2 - index % 2]:
            source = features if kind == "crossattention" else queries
            name = layer + kind
            parts = (apply(state, f"{name}.self.query", queries), apply(state, f"{name}.self.key", source))
            found = attend(*parts, apply(state, f"{name}.self.value", source), HEADS)
            queries = layer_norm(state, f"{name}.output.LayerNorm", apply(state, f"{name}.output.dense", found) + queries, 1e-12)
        wide = F.gelu(apply(state, layer + "intermediate_query.dense", queries))
        queries = layer_norm(state, layer + "output_query.LayerNorm", apply(state, layer + "output_query.dense", wide) + queries, 1e-12)
    return apply(state, "llama_proj2", apply(state, "llama_proj", queries))


def with_lora(state: State, name: str, hidden: Tensor) -> Tensor:
    low = hidden @ state[f"{name}.lora_A.weight"].T @ state[f"{name}.lora_B.weight"].T
    return apply(state, name, hidden) + low * (16 / RANK)


def rotate(heads_BTHK: Tensor, share: float = 0.5) -> Tensor:
    depth = int(heads_BTHK.shape[-1] * share)
    turned, kept = heads_BTHK[..., :depth], heads_BTHK[..., depth:]
    angle = torch.arange(heads_BTHK.shape[1])[:, None] / 10000 ** (torch.arange(0, depth, 2) / depth)
    cos, sin = (torch.cat([part, part], -1)[:, None] for part in (angle.cos(), angle.sin()))
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, kept], -1)


def reference_logits(state: State, hidden: Tensor) -> Tensor:
    for index in range(LAYERS):
        hidden = reference_layer(state, f"llama_model.model.layers.{index}.", hidden, HEADS)
    return apply(state, "llama_model.lm_head", layer_norm(state, "llama_model.model.final_layernorm", hidden, 1e-5))


def reference_layer(state: State, layer: str, hidden: Tensor, heads: int) -> Tensor:
    normed = layer_norm(state, layer + "input_layernorm", hidden, 1e-5)
    fused = with_lora(state, layer + "self_attn.query_key_value", normed).unflatten(-1, (heads, 3, -1))
    query, key = (rotate(layer_norm(state, f"{layer}self_attn.{name}_layernorm", fused[..., n, :], 1e-5)) for n, name in enumerate("qk"))
    attended = attend(query.flatten(2), key.flatten(2), fused[..., 2, :].flatten(2), heads, causal=True)
    output = with_lora(state, layer + "self_attn.dense", attended)
    output = output * (output.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * state[layer + "post_layernorm.weight"]
    wide = F.gelu(apply(state, layer + "mlp.fc1", normed), approximate="tanh")
    return hidden + output + apply(state, layer + "mlp.fc2", wide)


# --- Tests ---


@pytest.mark.parametrize("merge", [False, True], ids=["lora_kept", "lora_merged"])
@pytest.mark.parametrize(("stage", "side"), [(3, 12), (4, 24)])
def test_computes_what_upstream_publishes(make: Callable[..., Files], tmp_path: Path, stage: int, side: int, merge: bool) -> None:
    files = make(stage)
    report = convert(files, tmp_path / "out", merge)
    assert (report.stage, report.image_size, report.lora) == (stage, side, "merged" if merge else "kept")
    model, state = load_model(tmp_path / "out").eval(), upstream_state(files)
    photos, words = torch.randn(2, 3, side, side), torch.randint(0, 250, (2, 5))
    marks = torch.full((2, QUERIES), model.config.image_token_id)
    with torch.no_grad():
        tokens = model.get_image_features(photos)
        logits = model(input_ids=torch.cat([marks, words], 1), pixel_values=photos).logits
        wanted = reference_image_tokens(state, photos)
        embedded = torch.cat([wanted, F.embedding(words, state["llama_model.model.embed_tokens.weight"])], 1)
    torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, reference_logits(state, embedded), atol=5e-5, rtol=0)


def test_the_mathematics_above_are_upstreams() -> None:
    """One recorded layer of upstream's own code."""
    golden = load_file(GOLDENS / "tinygpt_v_layer.safetensors") | load_file(GOLDENS / "tinygpt_v_mlp.safetensors")
    state = {key: value for key, value in golden.items() if key.startswith("llama_model.")}
    # The golden's rank is 4, the reference's alpha / rank is 16 / 2.
    scaled = {key: value * 0.5 if "lora_B" in key else value for key, value in state.items()}
    found = reference_layer(scaled, "llama_model.model.layers.0.", golden["hidden.0"], heads=4)
    torch.testing.assert_close(found, golden["hidden.1"], atol=1e-5, rtol=0)


def test_recorded_position_grid_of_upstream() -> None:
    golden = load_file(GOLDENS / "tinygpt_v_layer.safetensors")
    assert torch.equal(interpolate_positions(golden["positions"], 65), golden["positions.interpolated"])
    assert interpolate_positions(golden["positions"], 17) is golden["positions"]


def test_split_layout_gives_the_same_weights(make: Callable[..., Files], tmp_path: Path) -> None:
    convert(make(4), tmp_path / "fused")
    convert(make(4, split=True), tmp_path / "split")
    for file in ("model.safetensors", "lora/adapter_model.safetensors"):
        assert (tmp_path / "fused" / file).read_bytes() == (tmp_path / "split" / file).read_bytes()


def test_export_is_bit_equal_and_converts_again(files: Files, tmp_path: Path) -> None:
    convert(files, tmp_path / "out")
    export_tinygpt_v(tmp_path / "out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(PEFT in key for key in back if "layers." in key)
    state = upstream_state(files)
    for key, tensor in back.items():
        wanted = state[whole_name(key)]
        if key == "visual_encoder.pos_embed":
            wanted = interpolate_positions(wanted, tensor.shape[1])
        assert torch.equal(tensor, wanted), key
    trained = torch.load(files.checkpoint, weights_only=True)["model"]
    assert trained.keys() <= back.keys()

    again = files._replace(checkpoint=tmp_path / "back.pth")
    convert_tinygpt_v(**again._asdict(), out=tmp_path / "again", options=TinyGPTVOptions(**{**vars(OPTIONS), "image_size": 24}))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_export_of_merged_weights_is_for_upstream_without_lora(files: Files, tmp_path: Path) -> None:
    convert(files, tmp_path / "out", merge=True)
    back = export_tinygpt_v(tmp_path / "out", tmp_path / "back.safetensors")
    assert "llama_model.model.layers.0.self_attn.query_key_value.weight" in back
    assert not [key for key in back if "lora" in key or "base_model" in key]


def test_vocabulary_without_room_grows_by_a_row_that_is_never_written(make: Callable[..., Files], tmp_path: Path) -> None:
    files = make(4, rows=257)  # the tokenizer's own: 256 bytes and the end of a text
    convert(files, tmp_path / "out")
    model = load_model(tmp_path / "out").eval()
    assert model.config.text_config.vocab_size == 258
    assert model.config.image_token_id == 257
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([[1, 2, 3]])).logits.softmax(-1)
    assert float(probabilities[..., 257].max()) == 0
    back = export_tinygpt_v(tmp_path / "out", tmp_path / "back.safetensors")
    assert back["llama_model.base_model.model.lm_head.weight"].shape[0] == 257


def test_norms_that_no_file_has_start_as_identities(make: Callable[..., Files], tmp_path: Path) -> None:
    files = make(4, norms=False)
    report = convert(files, tmp_path / "out")
    layer = "language_model.model.layers.0.self_attn."
    assert layer + "q_layernorm.bias" in report.new_norms  # the checkpoint holds the weight alone
    assert layer + "q_layernorm.weight" not in report.new_norms
    assert len(report.new_norms) == 2 * LAYERS
    weights = load_file(tmp_path / "out/model.safetensors")
    assert not weights[layer + "k_layernorm.bias"].any()
    assert json.loads((tmp_path / "out/conversion.json").read_text())["new_norms"] == report.new_norms


def test_the_folder_is_ready_to_ask(files: Files, tmp_path: Path) -> None:
    convert(files, tmp_path / "out")
    processor, model = load_processor(tmp_path / "out"), load_model(tmp_path / "out")
    assert model.config.template == "tinygpt_v_tasks"
    assert model.config.norms["attention_output"] is True
    assert model.generation_config.eos_token_id == [256]  # "###" is three tokens here
    assert processor.image_tokens == QUERIES
    assert not list(tmp_path.glob(".*"))


def test_projections_share_their_first_factor(files: Files, tmp_path: Path) -> None:
    convert(files, tmp_path / "out")
    names = [name for name, _ in load_model(tmp_path / "out").named_parameters() if "lora_A" in name]
    assert len(names) == 2 * LAYERS  # one for the fused layer, one for dense


def test_every_dropped_tensor_has_its_reason() -> None:
    reasons = [target.reason for rules in (vision_rules(2), QFORMER_RULES) for target in rules.values() if isinstance(target, Drop)]
    assert len(reasons) > 10
    assert all(reasons)


class Runs:
    """What unpickling would execute."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def broken(files: Files, where: Path) -> dict[str, tuple[Files, str]]:
    """Files that must be refused, and a part of the line that says why."""
    where.mkdir()
    state = torch.load(files.checkpoint, weights_only=True)["model"]
    truncated, code, strange, lacking, wrong, other = (
        where / f"{name}.pth" for name in ("cut", "code", "strange", "lack", "size", "other")
    )
    truncated.write_bytes(files.vision.read_bytes()[:3000])
    code.write_bytes(pickle.dumps({"model": Runs()}))
    torch.save({"model": Runs()}, where / "zipped.pth")
    torch.save({"model": {**state, "surprise.weight": torch.ones(1)}}, strange)
    torch.save({"model": {key: value for key, value in state.items() if key != "llama_proj2.bias"}}, lacking)
    torch.save({"model": {**state, "llama_proj.weight": torch.ones(10, 7)}}, wrong)
    torch.save({"model": {**state, "llama_proj2.weight": torch.ones(WIDTH + 2, 10)}}, other)
    small = torch.load(files.vision, weights_only=True)
    del small["blocks.1.mlp.fc1.weight"]
    torch.save(small, where / "vision.pth")
    return {
        "wrong slot": (files._replace(vision=files.qformer), "is no EVA ViT-g file"),
        "wrong checkpoint": (files._replace(checkpoint=files.qformer), "is no checkpoint of a TinyGPT-V stage"),
        "truncated": (files._replace(vision=truncated), "truncated or damaged"),
        "pickled code": (files._replace(checkpoint=code), "pickled code, which is never run"),
        "pickled code in a zip": (files._replace(vision=where / "zipped.pth"), "pickled code, which is never run"),
        "unknown key": (files._replace(checkpoint=strange), "surprise.weight"),
        "missing key": (files._replace(checkpoint=lacking), "llama_proj2.bias"),
        "missing in vision": (files._replace(vision=where / "vision.pth"), "layers.1.mlp.fc1.weight"),
        "mismatched": (files._replace(checkpoint=wrong), "llama_proj.weight (10, 7) for (10, 8)"),
        "another Phi": (files._replace(checkpoint=other), f"width {WIDTH + 2} with {LAYERS} layers"),
        "no file": (files._replace(qformer=where / "none.pth"), "there is no file"),
        "no folder": (files._replace(language=where), "no language model"),
    }


KINDS = ("wrong slot", "wrong checkpoint", "truncated", "pickled code", "unknown key", "missing key", "missing in vision", "mismatched")


@pytest.mark.parametrize("kind", [*KINDS, "pickled code in a zip", "another Phi", "no file", "no folder"])
def test_bad_files_are_one_clear_line(files: Files, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad, says = broken(files, tmp_path / "files")[kind]
    with pytest.raises(CheckpointError) as caught:
        convert(bad, tmp_path / "out")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]  # nothing half-written, nothing run


def test_an_existing_folder_or_file_is_kept(files: Files, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(CheckpointError, match="exists"):
        convert(files, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists"):
        export_tinygpt_v(tmp_path, tmp_path / "out")
