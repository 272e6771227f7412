"""The arithmetic that a stage leaves open follows the machine."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from salticid.checkpoints.load import load_model
from salticid.errors import ConfigurationError
from salticid.quant.processor import multiplies_bfloat16
from salticid.train import precision
from salticid.train.precision import choose_precision
from salticid.train.recipe import StageRecipe
from salticid.train.self_critical import SelfCriticalTrainer
from salticid.train.stage import run_stage
from salticid.train.trainer import StageTrainer


def machine(monkeypatch: pytest.MonkeyPatch, accelerator: bool, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: bfloat16)


@pytest.mark.parametrize(
    ("accelerator", "bfloat16", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32"), (True, True, "bf16")]
)
def test_auto_follows_the_machine(monkeypatch: pytest.MonkeyPatch, accelerator: bool, bfloat16: bool, expected: str) -> None:
    machine(monkeypatch, accelerator, bfloat16)
    assert choose_precision("auto") == expected


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_a_recipe_names_is_used_on_any_machine(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    for bfloat16 in (True, False):
        machine(monkeypatch, accelerator=False, bfloat16=bfloat16)
        assert choose_precision(asked) == asked


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, accelerator=True, bfloat16=True)
    assert choose_precision("fp16") == "fp16"
    machine(monkeypatch, accelerator=False, bfloat16=True)
    with pytest.raises(ConfigurationError, match="fp16 scales its gradients, which needs a GPU; set precision to auto"):
        choose_precision("fp16")


def test_this_processor_is_the_one_that_it_says() -> None:
    """Flags as the kernel lists them, where it does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo of an x86 processor")
    assert multiplies_bfloat16() == ("avx512_bf16" in flags)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("drawing", [True, False])
def test_a_stage_computes_in_what_was_chosen(
    stage_recipe: Callable[..., StageRecipe], monkeypatch: pytest.MonkeyPatch, bfloat16: bool, drawing: bool
) -> None:
    """Frozen matrices in 16 bits go with arithmetic in 16 bits alone: float32 activations cannot be multiplied by them."""
    if torch.accelerator.is_available():
        pytest.skip("an accelerator has its own arithmetic")
    machine(monkeypatch, accelerator=False, bfloat16=bfloat16)
    seen: set[torch.dtype] = set()
    original = StageTrainer.compute_loss

    def compute_loss(self: StageTrainer, model: torch.nn.Module, inputs: object, *args: object, **kwargs: object) -> object:
        seen.add(model.get_parameter("vision_tower.model.head.conv.weight").dtype)
        hook = model.get_submodule("connector").register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        if isinstance(self, SelfCriticalTrainer):
            seen.update(parameter.dtype for parameter in self._copy.parameters())
        result = original(self, model, inputs, *args, **kwargs)
        hook.remove()
        return result

    monkeypatch.setattr(StageTrainer, "compute_loss", compute_loss)
    changes = {"self_critical": {"samples": 2, "max_new_tokens": 3}} if drawing else {}
    run_stage(recipe := stage_recipe(precision="auto", frozen_precision="bf16", schedule__steps=1, **changes))
    assert seen == {torch.bfloat16 if bfloat16 else torch.float32}
    report = json.loads((recipe.output / "training.json").read_text())
    assert (report["precision"], report["recipe"]["precision"]) == ("bf16" if bfloat16 else "fp32", "auto")
    assert {parameter.dtype for parameter in load_model(recipe.output).parameters()} == {torch.float32}


def test_bf16_on_a_processor_without_it_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    precision._warn_of_bfloat16.cache_clear()
    machine(monkeypatch, accelerator=False, bfloat16=True)
    choose_precision("bf16")
    assert not caplog.records
    machine(monkeypatch, accelerator=False, bfloat16=False)
    choose_precision("bf16")
    choose_precision("bf16")
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["this processor has no instructions for bf16"]
