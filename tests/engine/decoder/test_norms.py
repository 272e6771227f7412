"""Each reader beside the module that it reads, also where rounding would show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.stablelm.modeling_stablelm import StableLmLayerNormPerHead

from salticid.engine.decoder.norms import READERS, read_norm
from salticid.engine.decoder.unplanned import Unplanned
from salticid.models.norms import HeadLayerNorm, RootMeanSquareLayerNorm

MODULES: dict[str, nn.Module] = {
    "LlamaRMSNorm": LlamaRMSNorm(16, eps=1e-2),
    "GemmaRMSNorm": GemmaRMSNorm(16, eps=1e-2),
    "RootMeanSquareLayerNorm": RootMeanSquareLayerNorm(16, eps=1e-2),
    "LayerNorm": nn.LayerNorm(16, eps=1e-2),
    "HeadLayerNorm": HeadLayerNorm(16, eps=1e-2),
    "Identity": nn.Identity(),
}


def shaken(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@torch.no_grad()
def test_norms_compute_what_their_modules_do(name: str, size: float) -> None:
    module = shaken(MODULES[name])
    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1)) * size
    assert_close(read_norm(module, torch.float32)(x), module(x), atol=1e-6 * size, rtol=1e-5)
    assert_close(read_norm(module, torch.bfloat16)(x), module(x).bfloat16(), atol=1e-2 * size, rtol=1e-2)


@torch.no_grad()
def test_stablelm_has_a_norm_for_each_head() -> None:
    module = shaken(StableLmLayerNormPerHead(16, 3))
    x = torch.randn(5, 3, 16)
    assert_close(read_norm(module, torch.float32)(x), module(x.transpose(0, 1)[None])[0].transpose(0, 1))


def test_an_unknown_norm_is_named_with_the_known_ones() -> None:
    with pytest.raises(Unplanned, match=f"no plan for the normalisation BatchNorm1d; known: {', '.join(READERS)}"):
        read_norm(nn.BatchNorm1d(3), torch.float32)
