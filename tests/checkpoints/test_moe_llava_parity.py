"""Converted MoE-LLaVA models compute what upstream recorded, in float32: features, hidden states, routing, losses, gradients, words."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from salticid.checkpoints.moe_llava import PHI_HEAD_BIAS, convert_moe_llava, invert_moe_llava
from salticid.checkpoints.moe_llava_folder import read_upstream
from salticid.models import VisionLanguageModel
from salticid.models.moe import Routing

BACKBONES = ("phi", "stablelm", "qwen", "mistral")
IMAGE_ID = 509  # occurs in no recorded text
PAD_ID = 510
UPSTREAM_IMAGE = -200
CLOSE = {"rtol": 1e-5, "atol": 3e-5}
CASES = {
    "eval_ecf2.0_noise0": {},
    "eval_ecf0.5_noise0": {"eval_capacity_factor": 0.5},
    "eval_ecf2.0_gumbel_seed1": {},
    "train_cf1.5_noise0": {},
    "train_cf0.5_min0_noise0": {"capacity_factor": 0.5},
    "train_cf0.1_min8_noise0": {"capacity_factor": 0.1, "min_capacity": 8},
    "train_cf1.5_gumbel_seed3": {},
    "train_skew_cf1.5_noise0": {},
    "train_skew_cf1.5_gumbel_seed4": {},
}
EXPERT_LAYERS = (0, 2)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What upstream did with one backbone."""

    folder: Path

    @property
    def backbone(self) -> str:
        return self.folder.name.removeprefix("moellava_")

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    def model(self, stage: str, **experts: Any) -> VisionLanguageModel:
        values, upstream = read_upstream(self.folder / stage)
        clip = self.folder.parent / "clip_tiny"
        tower = json.loads((clip / "config.json").read_text())
        conversion = convert_moe_llava(values, upstream, IMAGE_ID, tower=tower, tower_weights=load_file(clip / "model.safetensors"))
        if experts:
            conversion.config.experts = {**conversion.config.experts, **experts}
        model = VisionLanguageModel(conversion.config).eval()
        model.load_state_dict(dict(conversion.tensors()), strict=True)
        return model


@pytest.fixture(params=BACKBONES)
def recorded(request: pytest.FixtureRequest, shared: Path) -> Recorded:
    return Recorded(shared / "fixtures" / f"moellava_{request.param}")


def widen(ids: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Upstream's one mark per photo becomes 16 placeholders; padding is put on the right again."""
    labels = torch.full_like(ids, -100) if labels is None else labels
    mask = torch.ones_like(ids) if mask is None else mask
    rows: list[list[tuple[int, int]]] = []
    for ids_T, labels_T, mask_T in zip(ids, labels, mask, strict=True):
        pairs = [(int(i), int(label)) for i, label in zip(ids_T[mask_T.bool()], labels_T[mask_T.bool()], strict=True)]
        rows.append([wide for pair in pairs for wide in ([(IMAGE_ID, -100)] * 16 if pair[0] == UPSTREAM_IMAGE else [pair])])
    length = max(map(len, rows))
    filled = torch.tensor([row + [(PAD_ID, -100)] * (length - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": filled[..., 0], "labels": filled[..., 1], "attention_mask": real}


def batch_of(recorded: Recorded) -> dict[str, Tensor]:
    given = recorded.tensors("inputs")
    return {**widen(given["input_ids"], given["labels"], given["attention_mask"]), "pixel_values": given["images"]}


def check_gradients(recorded: Recorded, model: VisionLanguageModel, expected: dict[str, float]) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients.pop(PHI_HEAD_BIAS, None)  # upstream has none
    found = invert_moe_llava(recorded.backbone, gradients)
    assert expected
    for name, norm in expected.items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name


def test_dense_model(recorded: Recorded) -> None:
    model, batch, expected = recorded.model("dense"), batch_of(recorded), recorded.tensors("dense_outputs")
    torch.testing.assert_close(model.vision_tower(batch["pixel_values"]), expected["image_features"], **CLOSE)
    torch.testing.assert_close(model.get_image_features(batch["pixel_values"]), expected["projected_features"], **CLOSE)
    assert torch.equal(batch["labels"], expected["dense.labels"])
    assert torch.equal(batch["attention_mask"], expected["dense.attention_mask"])

    out = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()  # what is behind padding is no one's business
    torch.testing.assert_close(out.hidden_states[0][real], expected["dense.inputs_embeds"][real], **CLOSE)
    for index, hidden in enumerate(out.hidden_states):
        torch.testing.assert_close(hidden[real], expected[f"dense.hidden.{index}"][real], **CLOSE)
    torch.testing.assert_close(out.logits[real], expected["dense.logits"][real], **CLOSE)
    assert out.loss.item() == pytest.approx(recorded.meta["loss"]["dense"]["loss_total"], rel=1e-6)
    out.loss.backward()
    check_gradients(recorded, model, recorded.meta["grad_norms"]["dense"])


@pytest.mark.parametrize("case", CASES)
def test_experts(recorded: Recorded, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "eval" if case.startswith("eval") else "train_skew" if "skew" in case else "train"
    expected, batch = recorded.tensors(f"moe_outputs_{kind}"), batch_of(recorded)
    noisy = {"second_choice_noise": "gumbel"} if "gumbel" in case else {}
    model = recorded.model("moe", **CASES[case], **noisy).train(kind != "eval")
    layers = [model.language_model.base_model.layers[index].mlp for index in EXPERT_LAYERS]
    if kind == "train_skew":
        for index, layer in zip(EXPERT_LAYERS, layers, strict=True):
            layer.router.wg.weight.data.copy_(expected[f"skew.wg.{index}"])
    noise = [expected[f"{case}.moe.{index}.gumbel"] for index in EXPERT_LAYERS] if noisy else []
    monkeypatch.setattr("salticid.models.moe.router.gumbel_noise", lambda like: noise.pop(0))
    routings: list[Routing] = []
    outputs: list[Tensor] = []
    for layer in layers:
        layer.router.register_forward_hook(lambda _, __, routing: routings.append(routing))
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))

    out = model(**batch, output_hidden_states=True)
    meta = recorded.meta
    for index, routing, output in zip(EXPERT_LAYERS, routings, outputs, strict=True):
        check_routing(routing, {name.split(".")[-1]: t for name, t in expected.items() if name.startswith(f"{case}.moe.{index}.")}, output)
        assert routing.capacity == meta["moe_info"][case][str(index)]["capacity"]
    assert out.aux_loss.item() == pytest.approx(meta["loss"][case]["moe_loss_times_coef"], rel=1e-6)
    assert out.loss.item() == pytest.approx(meta["loss"][case]["loss_total"], rel=1e-6)
    if f"{case}.logits" in expected:
        torch.testing.assert_close(out.logits, expected[f"{case}.logits"], **CLOSE)
        for index, hidden in enumerate(out.hidden_states):
            torch.testing.assert_close(hidden, expected[f"{case}.hidden.{index}"], **CLOSE)
    else:
        torch.testing.assert_close(out.logits[batch["labels"] != -100], expected[f"{case}.logits_at_labels"], **CLOSE)
    if case in meta["grad_norms"]:
        out.loss.backward()
        check_gradients(recorded, model, meta["grad_norms"][case])


def check_routing(routing: Routing, expected: dict[str, Tensor], output: Tensor) -> None:
    torch.testing.assert_close(routing.logits_SE, expected["gate_logits"], **CLOSE)
    assert torch.equal(routing.experts_SK, torch.stack([expected["expert1"], expected["expert2"]], dim=1))
    assert torch.equal(routing.kept_SK.long(), torch.stack([expected["kept1"], expected["kept2"]], dim=1))
    combine_SE = torch.zeros_like(routing.logits_SE).scatter_(1, routing.experts_SK, routing.weights_SK)
    torch.testing.assert_close(combine_SE, expected["combine"], **CLOSE)
    torch.testing.assert_close(routing.aux_loss, expected["l_aux"].squeeze(), **CLOSE)
    if "output" in expected:
        torch.testing.assert_close(output, expected["output"], **CLOSE)


def words_after(model: VisionLanguageModel, prompt: Tensor, photo: Tensor) -> list[int]:
    batch = widen(prompt)
    batch.pop("labels")
    out = model.generate(**batch, pixel_values=photo, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=PAD_ID)
    return out[0, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("stage", ["dense", "moe"])
def test_greedy_words(recorded: Recorded, stage: str) -> None:
    expected, tag = recorded.tensors("dense_outputs" if stage == "dense" else "moe_outputs_eval"), "dense" if stage == "dense" else "eval"
    if f"{tag}.generate.0.prompt" not in expected:
        pytest.skip(f"upstream could not: {recorded.meta['moe_generate_error'][:80]}")
    model, photos = recorded.model(stage), recorded.tensors("inputs")["images"]
    for index in range(2):
        prompt, ids = expected[f"{tag}.generate.{index}.prompt"], expected[f"{tag}.generate.{index}.ids"]
        assert words_after(model, prompt, photos[index : index + 1]) == ids[0, prompt.shape[1] :].tolist()


def test_greedy_words_with_upstreams_noise(recorded: Recorded) -> None:
    expected = recorded.tensors("moe_outputs_eval")
    if "eval.generate.0.prompt" not in expected:
        pytest.skip("upstream could not generate")
    model = recorded.model("moe", second_choice_noise="gumbel")
    prompt, photo = expected["eval.generate.0.prompt"], recorded.tensors("inputs")["images"][:1]
    for seed, ids in recorded.meta["generate_with_upstream_noise"].items():
        torch.manual_seed(int(seed))
        assert words_after(model, prompt, photo) == ids[prompt.shape[1] :]


@pytest.mark.parametrize(("side", "limit"), [("right", None), ("right", 20), ("left", None), ("left", 20)])
def test_two_photos_no_photo_and_a_photo_at_the_end(shared: Path, side: str, limit: int | None) -> None:
    recorded = Recorded(shared / "fixtures" / "moellava_phi")
    expected = recorded.tensors("prepare_multimodal")
    tag = f"prep.{side}.{'full' if limit is None else f'max{limit}'}"
    batch = widen(expected["prep.input_ids"], expected["prep.labels"], expected["prep.input_ids"] != PAD_ID)
    # The row without a photo got one upstream as well, of which no token is read.
    photos = expected["prep.images"][[0, 1, 3]]
    with torch.no_grad():
        merged = recorded.model("moe")(**batch, pixel_values=photos, output_hidden_states=True).hidden_states[0]
    rows = [row[real.bool()][:limit] for row, real in zip(merged, batch["attention_mask"], strict=True)]
    labels = [row[real.bool()][:limit] for row, real in zip(batch["labels"], batch["attention_mask"], strict=True)]
    pad = {"batch_first": True, "padding_side": side}
    torch.testing.assert_close(torch.nn.utils.rnn.pad_sequence(rows, **pad), expected[f"{tag}.inputs_embeds"], **CLOSE)
    assert torch.equal(torch.nn.utils.rnn.pad_sequence(labels, **pad, padding_value=-100), expected[f"{tag}.labels"])
    ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
    assert torch.equal(torch.nn.utils.rnn.pad_sequence(ones, **pad), expected[f"{tag}.attention_mask"])


def test_a_batch_of_three_is_three_rows(recorded: Recorded) -> None:
    # Upstream tells a layer's two results from one by a length of three, and takes a batch of three for a triple.
    assert any(shape for shape in recorded.meta["batch3"]["moe_loss_list_shapes"])
    model, two = recorded.model("moe"), batch_of(recorded)
    three = {name: tensor[[0, 1, 0]] for name, tensor in two.items()}
    with torch.no_grad():
        out, alone = model(**three), model(**two)
    assert out.logits.shape == (3, 36, 512)
    torch.testing.assert_close(out.logits, alone.logits[[0, 1, 0]], **CLOSE)
    assert [tuple(logits.shape) for logits in out.router_logits] == [(108, 4), (108, 4)]
    assert out.aux_loss.shape == ()


def test_names_of_the_cases_say_what_they_set() -> None:
    for case, options in CASES.items():
        factor = re.search(r"_(e?)cf([\d.]+)", case)
        assert factor is not None
        name = "eval_capacity_factor" if factor[1] else "capacity_factor"
        assert float(factor[2]) == options.get(name, 2.0 if factor[1] else 1.5)
