"""Layers of experts: everything that is timed is the layer it claims to be."""

from __future__ import annotations

import pytest
import torch

from salticid.bench.experts import IMPLEMENTATIONS, _calls, time_experts
from salticid.bench.report import experts_table, experts_values
from salticid.bench.subject import Subject
from salticid.errors import InputError
from salticid.models import VisionLanguageConfig


class Clock:
    """Every look at it is a second later."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def config() -> VisionLanguageConfig:
    config = Subject(shape="nano", layers=1).config()
    config.text_config.hidden_size, config.text_config.intermediate_size = 64, 96
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = 1
    return config


def test_every_row_is_timed(config: VisionLanguageConfig) -> None:
    times = time_experts(config, "fp32", tokens=5, rounds=2, clock=Clock())
    assert [time.name for time in times] == ["dense", "all experts", *IMPLEMENTATIONS]
    assert all(time.decode is not None and time.decode.median == 1000 and not time.note for time in times)
    assert [time.name for time in times if time.prefill is None] == ["batched_mm"]
    assert {value["decode_to_dense"] for value in experts_values(times)} == {1.0}
    assert experts_table(times).count("\n") == 6


@torch.inference_mode()
def test_implementations_agree(config: VisionLanguageConfig) -> None:
    calls, notes = _calls(config, "fp32")
    assert notes == {}
    x = torch.randn(1, 7, 64)
    for name in IMPLEMENTATIONS:
        torch.testing.assert_close(calls[name](x), calls["eager"](x))
    torch.testing.assert_close(calls["all experts"](x), 4 * calls["dense"](x))


def test_the_models_own_experts_are_taken(config: VisionLanguageConfig) -> None:
    config.experts = {"experts": [2, 3], "top_k": 1, "layers": "all"}
    calls, _ = _calls(config, "fp32")
    x = torch.randn(1, 2, 64)
    torch.testing.assert_close(calls["all experts"](x), 3 * calls["dense"](x))


def test_what_cannot_be_made_small_yet_is_said(config: VisionLanguageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from salticid.bench import experts
    from salticid.errors import ConfigurationError

    def refuse(model: object, precision: str) -> object:
        if getattr(model, "experts", None) is not None:
            raise ConfigurationError("not with experts")
        return model

    monkeypatch.setattr(experts, "quantized", refuse)
    times = time_experts(config, "bf16", tokens=2, rounds=1, clock=Clock())
    assert [(time.name, time.note) for time in times] == [("dense", ""), ("experts", "not with experts")]
    assert "| experts | bf16 |  |  |  |  | not with experts |" in experts_table(times)


def test_refusals(config: VisionLanguageConfig) -> None:
    with pytest.raises(InputError, match="a measurement needs 1 token"):
        time_experts(config, "fp32", tokens=0)
