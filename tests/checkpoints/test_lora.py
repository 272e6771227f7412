"""LoRA beside the weights: attached, merged, saved and read again; one first factor for what was one fused layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from salticid.checkpoints.load import load_model
from salticid.checkpoints.lora import merge_attached_lora, merge_lora, save_model, split_lora, write_lora
from salticid.errors import CheckpointError
from salticid.models import VisionLanguageConfig, VisionLanguageModel

RANK = 2
IDS = torch.tensor([[1, 2, 3, 4]])
LAYER = "language_model.model.layers.0.self_attn."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 8, "patch_size": 4}
    config = VisionLanguageConfig(vision_config=vision, text_config={"model_type": "phi", "vocab_size": 16, **sizes}, norms={"query": True})
    VisionLanguageModel(config).save_pretrained(tmp_path / "model")
    first = torch.randn(RANK, 16)
    factors = {f"{LAYER}{name}_proj.lora_A.weight": first for name in "qkv"} | {f"{LAYER}dense.lora_A.weight": torch.randn(RANK, 16)}
    factors |= {name.replace("lora_A", "lora_B"): torch.randn(16, RANK) for name in factors}
    write_lora(tmp_path / "model", factors, alpha=4, dropout=0.0)
    return tmp_path / "model"


def logits(model: VisionLanguageModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_merged_and_attached_give_the_same(folder: Path) -> None:
    model = load_model(folder)
    attached = logits(model)
    merge_attached_lora(model)
    torch.testing.assert_close(logits(model), attached, atol=1e-5, rtol=0)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    (folder / "lora/adapter_config.json").unlink()
    plain = load_model(folder)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert not torch.allclose(logits(plain), attached, atol=1e-3)


def test_what_is_saved_is_read_again(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "final_layernorm" in name:
                value.add_(0.1)  # as a training stage would
    (tmp_path / "next").mkdir()
    save_model(model, tmp_path / "next")
    torch.testing.assert_close(logits(load_model(tmp_path / "next")), logits(model))
    assert logits(model).isfinite().all()  # and it still works here


def test_a_merged_model_is_saved_without_adapters(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    merge_attached_lora(model)
    save_model(model, tmp_path / "next")
    assert not (tmp_path / "next/lora").exists()
    torch.testing.assert_close(logits(load_model(tmp_path / "next")), logits(model))


def test_the_shared_factor_learns_from_all_three(folder: Path) -> None:
    model = load_model(folder).eval()
    model.requires_grad_(True)
    model(input_ids=IDS).logits.pow(2).sum().backward()
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert [name.split(".")[-4] for name in names] == ["q_proj", "dense"]
    attention = model.get_submodule(LAYER.rstrip("."))
    assert attention.k_proj.lora_A["default"] is attention.q_proj.lora_A["default"] is attention.v_proj.lora_A["default"]


def test_merging_by_hand() -> None:
    weight, a, b = torch.randn(3, 5), torch.randn(RANK, 5), torch.randn(3, RANK)
    torch.testing.assert_close(merge_lora(weight, a, b, alpha=6), weight + 3 * b @ a)
    assert merge_lora(weight.half(), a, b, alpha=6).dtype == torch.float16
    assert split_lora({"x.lora_A.weight": a, "x.weight": weight})[0].keys() == {"x.weight"}


def test_half_a_lora_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.lora_B\.weight is missing"):
        write_lora(tmp_path, {"x.lora_A.weight": torch.ones(2, 3)}, alpha=1, dropout=0)
    (folder / "lora/adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(folder)
