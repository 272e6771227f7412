"""The runner asks every item, in order, and beside the model two that see nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salticid.checkpoints.load import load_model, load_processor
from salticid.errors import ConfigurationError
from salticid.eval.benchmarks import BENCHMARKS
from salticid.eval.benchmarks.base import Item
from salticid.eval.runner import answer_items, as_table, evaluate


@pytest.fixture(scope="module")
def parts(tiny_model_folder: Path):
    return load_model(tiny_model_folder).eval(), load_processor(tiny_model_folder)


def test_answers_come_in_order_whatever_the_batch(parts, data_folder: Path) -> None:
    photos = sorted((data_folder / "coco" / "images").iterdir())[:5]
    items = [Item(photo, question) for photo, question in zip(photos, ("a dog", "Describe the photo.", "two", "yes no", "a"), strict=True)]
    together = answer_items(*parts, items, max_new_tokens=6, batch_size=3)
    alone = [answer_items(*parts, [item], max_new_tokens=6)[0] for item in items]
    assert together == alone
    assert len(set(together)) > 1


def test_a_grey_photo_hides_the_photo(parts, data_folder: Path) -> None:
    photos = sorted((data_folder / "coco" / "images").iterdir())[:5]
    items = [Item(photo, "Describe the photo.") for photo in photos]
    assert len(set(answer_items(*parts, items, max_new_tokens=8))) > 1
    assert len(set(answer_items(*parts, items, max_new_tokens=8, grey=True))) == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_rewards_the_truth_and_guesses_without_it(name: str, data_folder: Path) -> None:
    benchmark = BENCHMARKS[name](data_folder)
    assert benchmark.items
    assert all(item.photo.is_file() for item in benchmark.items)
    assert len(benchmark.guesses()) == len(benchmark.items)
    wrong = benchmark.score([""] * len(benchmark.items))
    assert wrong.keys() == benchmark.score(benchmark.guesses()).keys()


def test_perfect_answers_score_one(data_folder: Path) -> None:
    daquar = BENCHMARKS["daquar"](data_folder)
    assert daquar.score(daquar.answers) == {"exact_match": 1.0}
    assert daquar.guesses() == daquar.answers  # here each question has one answer, so statistics tell all
    yes_no = BENCHMARKS["yes_no_random"](data_folder)
    assert yes_no.score(yes_no.labels) == {"accuracy": 1.0, "f1": 1.0, "yes_ratio": 0.5}
    unknown = BENCHMARKS["unknown"](data_folder)
    answers = ["I don't know."] * unknown.unanswerable + ["a lamp"] * (len(unknown.items) - unknown.unanswerable)
    assert unknown.score(answers) == {"admits": 1.0, "refuses_wrongly": 0.0}
    refer = BENCHMARKS["refer"](data_folder)
    truth = ["<p>it</p> {" + "".join(f"<{edge}>" for edge in box) + "} and more" for box in refer.boxes]
    assert refer.score(truth) == pytest.approx({"accuracy_at_0.5": 1.0, "mean_iou": 1.0, "with_a_box": 1.0})
    assert refer.score(["there"] * len(truth)) == {"accuracy_at_0.5": 0.0, "mean_iou": 0.0, "with_a_box": 0.0}
    captions = BENCHMARKS["captions"](data_folder)
    exact = captions.score([photo.captions[0] for photo in captions.photos])
    assert exact["bleu4"] == pytest.approx(1.0)
    assert exact["distinct"] == 1.0


def test_no_photo_of_a_benchmark_is_trained_on(data_folder: Path) -> None:
    from salticid.data.datasets import SOURCES

    for name, kind in (("captions", "flickr8k"), ("daquar", "daquar"), ("yes_no_random", "coco")):
        trained = {photo.path for photo in SOURCES[kind](data_folder / kind, split="train").photos}
        assert trained
        assert not trained & {item.photo for item in BENCHMARKS[name](data_folder).items}


def test_evaluate_reports_all_three_and_keeps_the_answers(parts, data_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    results = evaluate(*parts, data_folder, ["yes_no_random"], save_answers=tmp_path, progress=lambda *step: heard.append(step))
    (result,) = results
    assert result.grey is not None
    assert result.guess["yes_ratio"] <= 1
    assert heard[-1] == ("yes_no_random", result.items, result.items)
    rows = [json.loads(line) for line in (tmp_path / "yes_no_random.jsonl").read_text().splitlines()]
    assert len(rows) == result.items
    assert set(rows[0]) == {"photo", "question", "answer"}
    assert f"| yes_no_random | accuracy | {result.model['accuracy']:.3f} |" in as_table(results)


def test_only_models_with_tasks_are_asked_in_their_words(parts, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = parts
    kinds = {name: BENCHMARKS[name] for name in ("yes_no_random", "refer")}
    monkeypatch.setattr("salticid.eval.runner.BENCHMARKS", kinds)
    assert [result.benchmark for result in evaluate(model, processor, data_folder, blind=False)] == ["yes_no_random"]
    monkeypatch.setattr(model.config, "template", "tinygpt_v_tasks")
    assert [result.benchmark for result in evaluate(model, processor, data_folder, blind=False)] == ["yes_no_random", "refer"]


def test_an_unknown_benchmark_is_named(parts, data_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown benchmark nothing; known: captions, daquar"):
        evaluate(*parts, data_folder, ["nothing"])
