from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from salticid.engine import patch_attention
from salticid.quant import native

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "attn_implementation": "sdpa",
}
TOWERS = [
    (CLIPVisionModel, CLIPVisionConfig),
    (SiglipVisionModel, SiglipVisionConfig),
    (Blip2VisionModel, Blip2VisionConfig),
]


@pytest.fixture(params=TOWERS, ids=lambda pair: pair[0].__name__)
def tower(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model, config = request.param
    made: PreTrainedModel = model(config(**SIZES)).eval()
    return made


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that our own kernel saw."""
    seen: list[torch.Size] = []
    original = native.attend_prompt
    monkeypatch.setattr(native, "attend_prompt", lambda q, *rest, **options: seen.append(q.shape) or original(q, *rest, **options))
    return seen


def features(tower: PreTrainedModel, photos: int = 2) -> torch.Tensor:
    pixels = torch.randn(photos, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: torch.Tensor = tower(pixels.to(tower.dtype)).last_hidden_state
    return found.float()


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
def test_towers_attend_by_our_own_kernel(tower: PreTrainedModel, attended: list[torch.Size]) -> None:
    expected = features(tower.float())
    by_torch = features(tower.bfloat16())
    assert not attended
    patch_attention.use_for(tower)
    found = features(tower)
    assert len(attended) == 2 * SIZES["num_hidden_layers"]
    assert (found - expected).norm() < 1.1 * (by_torch - expected).norm()


def test_float32_and_gradients_keep_torchs_function(tower: PreTrainedModel, attended: list[torch.Size]) -> None:
    expected = features(tower)
    patch_attention.use_for(tower)
    assert_close(features(tower), expected, atol=0, rtol=0)
    tower.bfloat16()(torch.randn(1, 3, 64, 64).bfloat16()).last_hidden_state.sum().backward()
    assert not attended
    assert next(tower.parameters()).grad is not None


def test_another_choice_of_attention_is_kept(tower: PreTrainedModel) -> None:
    tower.set_attn_implementation("eager")
    patch_attention.use_for(tower)
    assert tower.config._attn_implementation == "eager"
