"""Memory before anyone downloads: counted on shapes, and checked by measuring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salticid.bench import child, memory
from salticid.bench.memory import footprint, footprints, forget_peak, peak
from salticid.bench.report import memory_table
from salticid.bench.subject import Subject
from salticid.errors import SalticidError
from salticid.models import VisionLanguageModel


def test_weights_are_those_of_the_real_model() -> None:
    subject = Subject(shape="nano", layers=1)
    for precision in ("fp32", "bf16", "int8"):
        model = subject.build(precision)
        real = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        assert sum(footprint(subject.config(), precision, 10).weights.values()) == real


def test_published_sizes() -> None:
    found, refused = footprints(Subject(shape="moe-llava-phi2").config(), 1000)
    half = next(each for each in found if each.precision == "bf16")
    assert half.weights["experts"] == 2 * (16 * 4 * 2 * 2560 * 10240 + 16 * 4 * (2560 + 10240)) + 4 * 16 * 4 * 2560
    assert half.cache == 2 * 32 * 2560 * 1000 * 2
    assert half.total == sum(half.weights.values()) + half.cache + half.activations + half.libraries
    assert {each.precision for each in found} | set(refused) == {"fp32", "bf16", "int8", "int4"}
    assert memory_table(found, {}).count("\n") == len(found) + 1


def test_a_longer_question_takes_more() -> None:
    config = Subject(shape="phi-2").config()
    short, long = (footprint(config, "fp32", tokens) for tokens in (600, 2000))
    assert long.cache * 600 == short.cache * 2000
    assert long.activations > short.activations


def test_the_peak_of_this_process() -> None:
    def hold(size: int) -> None:
        torch.ones(size // 4).sum()

    more = 100 * 2**20
    before = peak()
    hold(before - memory.resident() + more)
    assert peak() > before + more // 2
    if forget_peak():
        assert peak() < before + more // 2


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = peak()
    monkeypatch.setattr(memory, "_status", lambda: None)
    assert peak() > 0.9 * exact
    assert memory.resident() == peak()


def test_an_answer_in_this_process(tiny_model_folder: Path) -> None:
    found = child.answer_once(Subject(model=str(tiny_model_folder)), "fp32", 8, 2)
    assert 0 < found.libraries <= found.answer <= found.whole


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SalticidError, match=r"the measured process failed: .*no model"):
        child.measure_peak(Subject(model=str(tmp_path / "none")), "fp32", 8, 2, 1)


@pytest.mark.slow
def test_what_is_worked_out_is_what_is_measured() -> None:
    subject = Subject(shape="nano")
    for precision in ("fp32", "bf16"):
        measured = child.measure_peak(subject, precision, 600, 8, 1)
        assert footprint(subject.config(), precision, 608).total == pytest.approx(measured.answer, rel=0.15)


def test_shapes_take_no_memory() -> None:
    assert all(parameter.is_meta for parameter in memory.meta_model(Subject(shape="tinygpt-v").config(), torch.bfloat16).parameters())
    assert isinstance(memory.meta_model(Subject(shape="nano").config(), torch.float32), VisionLanguageModel)
    assert torch.get_default_dtype() == torch.float32
