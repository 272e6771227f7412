"""Answer scorers: the official rules on small cases, and the recorded output of the upstream scripts where it is at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from salticid.errors import ConfigurationError, DataError
from salticid.scorers.answers import (
    YesNoResult,
    answer_set,
    choice_accuracy,
    contains_match,
    exact_match,
    hateful_memes_match,
    map_words,
    normalize_textvqa,
    normalize_vqa,
    parse_choice,
    parse_yes_no,
    plain_answer,
    set_match,
    strip_punctuation,
    vizwiz_contains,
    vqa_accuracy,
    yes_no_scores,
)


def recorded(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two dogs.", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("7,500 people", "7500 people"),
        ("left/right", "left right"),
        ("left /right", "left right"),
        ("2.5 m.", "2.5 m"),
        ("an\torange\n", "orange"),
    ],
)
def test_vqa_normalisation(text: str, normal: str) -> None:
    assert normalize_vqa(text) == normal


def test_textvqa_normalisation_sets_the_possessive_apart() -> None:
    assert normalize_textvqa("Anna's, shop?") == "anna 's shop"


def test_vqa_accuracy_counts_three_matches_as_full_and_leaves_each_annotator_out() -> None:
    one, two, four = (["cat"] * n + ["dog"] * (10 - n) for n in (1, 2, 4))
    assert vqa_accuracy(["a cat"] * 3, [one, two, four]).per_item == pytest.approx((0.3, 0.6, 1.0))


def test_dropping_equal_answers_leaves_out_all_who_said_the_same() -> None:
    answers = ["cat"] * 4 + ["dog"] * 6
    assert vqa_accuracy(["cat"], [answers]).score == 1.0
    assert vqa_accuracy(["cat"], [answers], drop_equal_answers=True).score == pytest.approx(0.6)


def test_vqav2_normalises_only_where_annotators_disagree() -> None:
    unanimous, divided = ["2"] * 10, ["2"] * 9 + ["3"]
    assert vqa_accuracy(["two", "two"], [unanimous, divided]).per_item == (0.0, 1.0)
    assert vqa_accuracy(["two", "two"], [unanimous, divided], protocol="textvqa").per_item == (1.0, 1.0)


def test_unknown_protocol_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'gqa': choose one of vqav2, lavis, textvqa"):
        vqa_accuracy(["a"], [["a"]], protocol="gqa")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "protocol"), [("vqaEvaluation/vqaEval.py (used by eval_vqa.py)", "vqav2"), ("vqa_tools/vqa_eval.py", "lavis")]
)
@pytest.mark.parametrize("without_ids", [False, True])
def test_vqa_equals_the_upstream_script(shared: Path, script: str, protocol: Any, without_ids: bool) -> None:
    folder = shared / "fixtures" / "scorers"
    scores = recorded(folder / "scores.json")["vqa"][script + " [answers without answer_id]" * without_ids]
    rows = recorded(folder / "vqa" / "rows.json")
    result = vqa_accuracy([row["pred"] for row in rows], [row["gt"] for row in rows], protocol, drop_equal_answers=without_ids)
    assert [round(100 * item, 2) for item in result.per_item] == list(scores["per_question"].values())
    assert round(100 * result.score, 2) == scores["overall"]
    for text, expected in scores.get("processPunctuation", {}).items():
        assert strip_punctuation(text) == expected
    for text, expected in scores.get("processDigitArticle", {}).items():
        assert map_words(text) == expected


def test_textvqa_equals_the_upstream_script(shared: Path) -> None:
    scores = recorded(shared / "fixtures" / "scorers" / "scores.json")
    rows = scores["textvqa_rows"]
    assert [normalize_textvqa(row["pred"]) for row in rows] == [row["processed"] for row in rows]
    assert [[normalize_textvqa(answer) for answer in row["gt"]] for row in rows] == [row["gt_processed"] for row in rows]
    result = vqa_accuracy([row["pred"] for row in rows], [row["gt"] for row in rows], "textvqa")
    assert result.per_item == pytest.approx([row["score"] for row in rows], abs=1e-12)
    assert f"Accuracy: {100 * result.score:.2f}%" in scores["textvqa"]["stdout"]


def test_exact_match_ignores_case_spaces_and_final_dots_only() -> None:
    assert exact_match(["Red.", "the red", " dark  red", ""], ["red", "red", "dark red", "red"]).per_item == (1.0, 0.0, 1.0, 0.0)


def test_gqa_equals_the_upstream_scripts(shared: Path) -> None:
    folder = shared / "fixtures" / "scorers"
    questions = recorded(folder / "gqa" / "testdev_balanced_questions.json")
    replies = {row["question_id"]: row["text"] for row in recorded(folder / "gqa" / "answers.jsonl")}
    for row in recorded(folder / "gqa" / "testdev_balanced_predictions.json"):
        assert plain_answer(replies[row["questionId"]]) == row["prediction"]

    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    subsets = {
        "Accuracy": list(balanced),
        "Binary": [key for key, question in balanced.items() if question["types"]["structural"] != "query"],
        "Open": [key for key, question in balanced.items() if question["types"]["structural"] == "query"],
    }
    printed = recorded(folder / "scores.json")["gqa"]["stdout"]
    for name, keys in subsets.items():
        result = exact_match([replies[key] for key in keys], [questions[key]["answer"] for key in keys])
        assert f"\n{name}: {100 * result.score:.2f}%" in printed


def test_set_match_compares_unordered_sets() -> None:
    predictions = ["Lamp, garbage bin.", "lamp", "lamp, lamp", "lamp, sofa, bed", ""]
    assert set_match(predictions, ["garbage_bin, lamp", "lamp, sofa", "lamp", "sofa, lamp", "lamp"]).per_item == (1, 0, 1, 0, 0)
    assert answer_set("Book, , paper_cutter") == {"book", "paper cutter"}


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes, it is.", "yes"),
        ("No, it is.", "no"),
        ("It is not there", "no"),
        ("Yes. There is no cat.", "yes"),
        ("NO", "yes"),
        ("Nobody", "yes"),
        ("", "yes"),
    ],
)
def test_yes_no_is_read_as_pope_reads_it(reply: str, read: str) -> None:
    assert parse_yes_no(reply) == read


def test_yes_no_scores() -> None:
    result = yes_no_scores(["yes", "yes", "yes", "no", "no"], ["yes", "yes", "no", "no", "yes"])
    assert result == YesNoResult(0.6, 2 / 3, 2 / 3, pytest.approx(2 / 3), 0.6, 2, 1, 1, 1)  # type: ignore[arg-type]
    silent = yes_no_scores(["no", "no"], ["yes", "no"])
    assert (silent.accuracy, silent.precision, silent.recall, silent.f1, silent.yes_ratio) == (0.5, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(DataError, match=r"labels\[1\] is 'No'"):
        yes_no_scores(["no", "no"], ["yes", "No"])


def test_pope_equals_the_upstream_script(shared: Path) -> None:
    folder = shared / "fixtures" / "scorers"
    scores = recorded(folder / "scores.json")
    assert [parse_yes_no(row["text"]) for row in scores["pope_mapping"]] == [row["mapped"] for row in scores["pope_mapping"]]

    category = {row["question_id"]: row["category"] for row in recorded(folder / "pope" / "questions.jsonl")}
    replies = recorded(folder / "pope" / "answers.jsonl")
    blocks = dict(re.findall(r"Category: (\w+).*?\n.*?\n([\d\t]+\n(?:.+\n)+?)=", scores["pope"]["stdout"]))
    assert set(blocks) == {"adversarial", "popular", "random"}
    for name, printed in blocks.items():
        lines = (folder / "pope" / "annotations" / f"coco_pope_{name}.json").read_text(encoding="utf-8").splitlines()
        result = yes_no_scores(
            [row["text"] for row in replies if category[row["question_id"]] == name], [json.loads(line)["label"] for line in lines]
        )
        counts = [result.true_positives, result.false_positives, result.true_negatives, result.false_negatives]
        figures = [result.accuracy, result.precision, result.recall, result.f1, result.yes_ratio]
        assert "\t".join(map(str, counts)) == printed.splitlines()[0]
        assert [float(line.split(": ")[1]) for line in printed.splitlines()[1:6]] == figures


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B", "B"), ("B. a leaf", "B"), ("So: The answer is C.", "C"), ("b", None), ("B.", None), ("The answer is A. The answer is B.", None)],
)
def test_choice_is_read_as_llava_reads_it(reply: str, letter: str | None) -> None:
    assert parse_choice(reply) == letter


def test_choices_that_a_question_does_not_have_are_wrong() -> None:
    assert choice_accuracy(["A", "C", "C"], [0, 2, 2], [2, 3, 2]).per_item == (1.0, 1.0, 0.0)
    with pytest.raises(DataError, match=r"answers\[0\] is -1"):
        choice_accuracy(["A"], [-1], [2])


def test_science_qa_equals_the_upstream_script(shared: Path) -> None:
    folder = shared / "fixtures" / "scorers"
    problems = recorded(folder / "sqa" / "problems.json")
    replies = {row["question_id"]: row for row in recorded(folder / "sqa" / "answers.jsonl")}
    keys = recorded(folder / "sqa" / "pid_splits.json")["test"]
    outcome = recorded(folder / "sqa" / "output.json")
    for row in outcome["correct"] + outcome["incorrect"]:
        assert (parse_choice(row["pred"]) or "FAILED") == row["parsed_ans"]

    def accuracy(chosen: list[str]) -> float:
        texts = [replies[key]["text"] if key in replies else "" for key in chosen]
        problem = [problems[key] for key in chosen]
        return 100 * choice_accuracy(texts, [p["answer"] for p in problem], [len(p["choices"]) for p in problem]).score

    with_image = [key for key in keys if key in replies and "<image>" in replies[key]["prompt"]]
    printed = f"Total: {len(keys)}, Correct: {len(outcome['correct'])}, Accuracy: {accuracy(keys):.2f}%"
    assert f"{printed}, IMG-Accuracy: {accuracy(with_image):.2f}%\n" == recorded(folder / "scores.json")["sqa"]["stdout"]


def test_tinygpt_v_rules() -> None:
    assert contains_match(["It is Black", "it is left"], ["black", "Left"], lower_answers=False).per_item == (1.0, 0.0)
    assert contains_match(["it is left"], ["Left"]).score == 1.0
    assert hateful_memes_match(["Assistant: Yes###no", "I know", "maybe"], [1, 0, 0]).per_item == (1.0, 1.0, 0.0)
    assert vizwiz_contains(["cat", "", "owl"], [["cat", "cats", "dog"], ["a", "b", "c"], ["cat"]]).per_item == pytest.approx((2 / 3, 1, 0))


def test_tinygpt_v_rules_equal_the_upstream_script(shared: Path) -> None:
    rules = recorded(shared / "fixtures" / "scorers" / "tinygptv_rules" / "rules.json")

    def answers_and_labels(name: str) -> tuple[list[str], list[Any]]:
        return [row["answer"] for row in rules[name]["per"]], [row["label"] for row in rules[name]["per"]]

    replies, labels = answers_and_labels("vizwiz")
    results = {
        "gqa": contains_match(*answers_and_labels("gqa"), lower_answers=False),
        "vsr": contains_match(*answers_and_labels("vsr")),
        "hm": hateful_memes_match(*answers_and_labels("hm")),
        "vizwiz": vizwiz_contains(replies, [label.split("_") for label in labels]),
    }
    for name, result in results.items():
        assert result.per_item == pytest.approx([row["score"] for row in rules[name]["per"]])
        assert 100 * result.score == pytest.approx(rules[name]["overall"])


@pytest.mark.parametrize(
    ("scorer", "reference"),
    [
        (vqa_accuracy, ["a"]),
        (vizwiz_contains, ["a"]),
        (exact_match, "a"),
        (set_match, "a"),
        (yes_no_scores, "yes"),
        (contains_match, "a"),
        (hateful_memes_match, 1),
    ],
)
def test_what_cannot_be_paired_is_refused_with_both_numbers(scorer: Any, reference: Any) -> None:
    with pytest.raises(DataError, match="3 predictions but 1 references"):
        scorer(["a", "b", "c"], [reference])
    with pytest.raises(DataError, match="nothing to score"):
        scorer([], [])


@pytest.mark.parametrize("scorer", [vqa_accuracy, vizwiz_contains])
@pytest.mark.parametrize("golds", [[], "cat"])
def test_a_question_needs_a_list_of_answers(scorer: Any, golds: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"answers[1] is {golds!r}")):
        scorer(["a", "b"], [["a"], golds])
