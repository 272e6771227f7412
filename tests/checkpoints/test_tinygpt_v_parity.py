"""Upstream's own recorded numbers, from photos and words to loss, gradients and generated ids, through the public API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from salticid.checkpoints.key_table import build
from salticid.checkpoints.load import load_model, load_processor
from salticid.checkpoints.tinygpt_v import ConversionReport, TinyGPTVOptions, convert_tinygpt_v
from salticid.checkpoints.tinygpt_v_export import export_tinygpt_v
from salticid.checkpoints.tinygpt_v_files import join_vision_biases, whole_name
from salticid.checkpoints.tinygpt_v_keys import key_tables
from salticid.data.conversation import Example, Turn
from salticid.data.templates import get_template
from salticid.data.tokenize import IGNORE_INDEX, tokenize_example
from salticid.models import VisionLanguageConfig, VisionLanguageModel

OPTIONS = TinyGPTVOptions(vision_layers=3, vision_heads=4, qformer_heads=4)
WORDS = 512
CLOSE = {"atol": 2e-5, "rtol": 0}


class Case(NamedTuple):
    stage: int
    template: str
    rows: tuple[tuple[Turn, ...], ...]
    photo: bool = True


LONG = "[vqa] Based on the image, respond to this question with a short answer: where is it?"
CASES = {
    "caption": Case(2, "tinygpt_v_caption", ((Turn("", "a brown cat on a mat"),), (Turn("", "two dogs running"),))),
    "align": Case(
        3,
        "tinygpt_v_describe",
        (
            (Turn("Describe this image in detail.", "a brown cat on a mat."),),
            (Turn("Describe this image in detail.", "two dogs running in the park, with a ball."),),
        ),
    ),
    "vqa": Case(4, "tinygpt_v_tasks", ((Turn("[vqa] what color is the cat ?", "black"),), (Turn(LONG, "on the mat"),))),
    "vqa_single": Case(4, "tinygpt_v_tasks", ((Turn("[vqa] what color is the cat ?", "black"),),)),
    "conv": Case(
        4,
        "tinygpt_v_tasks_upstream",
        (
            (Turn("what is this?", "a cat"), Turn("and what color? ", "black")),
            (Turn("describe", "a dog on the grass"), Turn("why? ", "it plays")),
        ),
    ),
    "text_only": Case(
        4,
        "tinygpt_v_tasks",
        ((Turn("what is two plus two", "four"),), (Turn("name a color that is seen in the sky", "blue"),)),
        photo=False,
    ),
}


class Converted:
    """Model folders of the recorded stages, made when first asked for."""

    def __init__(self, root: Path):
        self._root = root
        self._reports: dict[str, ConversionReport] = {}

    def folder(self, shared: Path, stage: int, merge: bool = False) -> Path:
        name = f"stage{stage}{'_merged' if merge else ''}"
        if name not in self._reports:
            base = shared / "fixtures/tinygptv_base"
            suffix = "safetensors" if merge else "pth"
            checkpoint = shared / f"fixtures/tinygptv_stage{stage}/checkpoint_4.{suffix}"
            self._reports[name] = convert_tinygpt_v(
                checkpoint, base / "phi", base / "eva_vit_g.pth", base / "blip2_qformer.pth", self._root / name, merge, OPTIONS
            )
        return self._root / name


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("tinygpt_v"))


def recorded(shared: Path, stage: int) -> dict[str, Tensor]:
    return load_file(shared / f"fixtures/tinygptv_stage{stage}/outputs.safetensors")


def photos_of(shared: Path, stage: int) -> Tensor:
    return load_file(shared / "fixtures/tinygptv_inputs/images.safetensors")["img112" if stage == 4 else "img56"]


def written_down(case: Case, folder: Path, mask: Tensor) -> dict[str, Tensor]:
    """A batch of the case from its words, with upstream's mask, which hides a token between turns."""
    processor = load_processor(folder)
    ids, labels = torch.full(mask.shape, processor.tokenizer.pad_token_id), torch.full(mask.shape, IGNORE_INDEX)
    for row, turns in enumerate(case.rows):
        example = Example(images=("photo",) if case.photo else (), conversations=(turns,))
        tokens = tokenize_example(example, processor.tokenizer, get_template(case.template), processor.image_tokens)[0]
        assert mask[row].nonzero().max() + 1 == len(tokens.ids)
        ids[row, : len(tokens.ids)], labels[row, : len(tokens.ids)] = torch.tensor(tokens.ids), torch.tensor(tokens.labels)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.mark.parametrize("merge", [False, True], ids=["lora_kept", "lora_merged"])
@pytest.mark.parametrize("name", CASES)
def test_hidden_states_logits_and_loss(name: str, merge: bool, shared: Path, converted: Converted) -> None:
    case = CASES[name]
    folder = converted.folder(shared, case.stage, merge)
    model = load_model(folder).eval()
    wanted = {key.removeprefix(f"{name}."): value for key, value in recorded(shared, case.stage).items() if key.startswith(f"{name}.")}
    mask = wanted["attention_mask"]
    inputs: dict[str, Any] = written_down(case, folder, mask)
    torch.testing.assert_close(inputs["labels"], wanted["targets"])
    if case.photo:
        inputs["pixel_values"] = photos_of(shared, case.stage)[: len(case.rows)]
    with torch.no_grad():
        if case.photo:
            check_image_side(model, inputs["pixel_values"], wanted)
        outputs = model(**inputs, output_hidden_states=True)
    seen = mask.bool()
    for layer, hidden in enumerate(outputs.hidden_states):
        torch.testing.assert_close(hidden[seen], wanted[f"hidden.{layer}"][seen], **CLOSE)
    torch.testing.assert_close(outputs.logits[..., :WORDS][seen], wanted["logits"][seen], **CLOSE)
    torch.testing.assert_close(outputs.loss, wanted["loss"], atol=5e-6, rtol=0)


def check_image_side(model: VisionLanguageModel, photos: Tensor, wanted: dict[str, Tensor]) -> None:
    before_norm: list[Tensor] = []
    handle = model.vision_tower.model.post_layernorm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    features = model.vision_tower(photos)
    handle.remove()
    queries = model.connector.query_tokens.expand(len(photos), -1, -1)
    read = model.connector.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
    found = {
        "visual_encoder": before_norm[0],
        "ln_vision": features,
        "qformer_last_hidden": read,
        "llama_proj": model.connector.layers[0](read),
        "image_tokens": model.get_image_features(photos),
    }
    for part, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[part], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_gradient_norms(name: str, shared: Path, converted: Converted) -> None:
    case = CASES[name]
    folder = converted.folder(shared, case.stage)
    model = load_model(folder).eval()
    model.requires_grad_(True)
    inputs: dict[str, Any] = written_down(case, folder, recorded(shared, case.stage)[f"{name}.attention_mask"])
    if case.photo:
        inputs["pixel_values"] = photos_of(shared, case.stage)[: len(case.rows)]
    model(**inputs).loss.backward()
    gradients = {whole_name(key): value.grad for key, value in model.named_parameters() if value.grad is not None}
    upstream = key_tables(OPTIONS.vision_layers)["checkpoint"].invert(gradients)
    wanted = json.loads((shared / "fixtures/tinygptv_inputs/meta.json").read_text())["grad_norms"][name]
    assert len(wanted) > 20
    for key, norm in wanted.items():
        if norm is None:
            assert whole_name(key) not in upstream
        else:
            assert float(upstream[whole_name(key)].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-8), (
                key
            )  # a key's bias has none in theory


@pytest.mark.parametrize("merge", [False, True], ids=["lora_kept", "lora_merged"])
@pytest.mark.parametrize(
    ("stage", "name", "template", "questions"),
    [
        (3, "align", "tinygpt_v_demo", ["what is this?", "what is this?"]),
        (4, "vqa", "tinygpt_v_eval", ["[vqa] what color is the cat ?", "where?"]),
        (4, "vqa_single", "tinygpt_v_eval", ["[vqa] what color is the cat ?"]),
    ],
)
def test_greedy_ids(stage: int, name: str, template: str, questions: list[str], merge: bool, shared: Path, converted: Converted) -> None:
    folder = converted.folder(shared, stage, merge)
    model, processor = load_model(folder).eval(), load_processor(folder)
    texts = [get_template(template).prompt([Turn(question, "")], images=1) for question in questions]
    wide = [text.replace("<image>", "<image>" * processor.image_tokens) for text in texts]
    words = processor.tokenizer(wide, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    photos = photos_of(shared, stage)[: len(questions)]
    asked = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"], "pixel_values": photos}
    ids = model.generate(**asked, max_new_tokens=12, do_sample=False, eos_token_id=511)  # upstream stops nowhere else
    wanted = recorded(shared, stage)[f"{name}.gen_ids"]
    assert ids[:, asked["input_ids"].shape[1] :].tolist() == wanted[:, 1:].tolist()


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_export_is_bit_equal(stage: int, shared: Path, converted: Converted, tmp_path: Path) -> None:
    export_tinygpt_v(converted.folder(shared, stage), tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    folder = shared / f"fixtures/tinygptv_stage{stage}"
    wanted = load_file(folder / "checkpoint_4.safetensors")
    if stage == 4:
        wanted = load_file(folder / "full_state_dict.safetensors")
        assert back.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert back[key].dtype == tensor.dtype, key
        assert torch.equal(back[key], tensor), key


def test_recent_peft_names_are_read(shared: Path, tmp_path: Path, converted: Converted) -> None:
    from safetensors.torch import save_file

    old = load_file(shared / "fixtures/tinygptv_stage4/checkpoint_4.safetensors")
    names = json.loads((shared / "fixtures/tinygptv_stage4/checkpoint_keys_peft082.json").read_text())["keys"]
    by_whole = {whole_name(name): tensor for name, tensor in old.items()}
    save_file({name: by_whole[whole_name(name)].clone() for name in names}, tmp_path / "recent.safetensors")
    base = shared / "fixtures/tinygptv_base"
    convert_tinygpt_v(
        tmp_path / "recent.safetensors", base / "phi", base / "eva_vit_g.pth", base / "blip2_qformer.pth", tmp_path / "out", options=OPTIONS
    )
    for file in ("model.safetensors", "lora/adapter_model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (converted.folder(shared, 4) / file).read_bytes()


@pytest.mark.parametrize("file", ["TinyGPT-V_peft0.2.0.json", "TinyGPT-V_peft0.8.2.json"])
def test_names_at_full_size(file: str, shared: Path) -> None:
    lists = json.loads((shared / "fixtures/fullsize_keys" / file).read_text())
    table = key_tables(TinyGPTVOptions().vision_layers)["checkpoint"]
    for stage in ("stage1_2_3", "stage4"):
        if stage in lists:
            assert table.plan([whole_name(key) for key in lists[stage]["checkpoint_keys"]])


def test_whole_state_dict_fits_the_full_size_model(shared: Path) -> None:
    lists = json.loads((shared / "fixtures/fullsize_keys/TinyGPT-V_peft0.2.0.json").read_text())
    full = lists["full_state_dict_stage4"]
    tensors = {whole_name(key): torch.empty(shape, device="meta") for key, shape in full.items()}
    tensors = join_vision_biases(tensors)
    plan = key_tables(39)["checkpoint"].plan(tensors)
    config = VisionLanguageConfig(
        vision_config={"model_type": "blip_2_vision_model", "image_size": 448},
        text_config={
            "model_type": "phi",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 51200,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        },
        connector_config={"kind": "qformer", "depth": 2, "hidden_size": 4096, "activation": None},
        vision_keep_cls=True,
        norms={"query": True, "key": True, "attention_output": True},
    )
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    ours = {name: build(name, sources, tensors).shape for name, sources in plan.items() if ".lora_" not in name}
    assert ours == {name: tensor.shape for name, tensor in model.state_dict().items()}
