from __future__ import annotations

import shutil
from pathlib import Path

import torch

from salticid.checkpoints.load import load_model
from salticid.checkpoints.lora import write_lora
from salticid.quant import quantize_model


def test_adapters_are_merged_before_weights_are_quantised(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    shutil.copytree(tiny_model_folder, folder)
    plain = load_model(tiny_model_folder).eval()
    module = "language_model.model.layers.0.self_attn.o_proj"
    torch.manual_seed(0)
    factors = {f"{module}.lora_A.weight": torch.randn(4, 32), f"{module}.lora_B.weight": torch.randn(32, 4)}
    write_lora(folder, factors, alpha=2.0, dropout=0.0)

    ids = torch.arange(5, 15)[None]
    adapted = load_model(folder).eval()
    small = quantize_model(load_model(folder)).eval()
    with torch.inference_mode():
        wanted, before, got = (model(input_ids=ids).logits for model in (adapted, plain, small))
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    assert (before - wanted).norm() > 0.2 * wanted.norm()
    small.save_pretrained(tmp_path / "small")
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "small").eval()(input_ids=ids).logits, got)
