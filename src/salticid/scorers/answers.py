"""Answer scorers: VQA accuracy, exact match, answer sets (DAQUAR), yes/no (POPE), multiple choice, and TinyGPT-V's own rules.

All scores are shares in [0, 1]; official scripts print them times 100. No predictions, or unequal numbers of predictions and
references, raise `DataError`. An empty prediction is scored like any other wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Literal

from salticid.errors import ConfigurationError, DataError

# VQA's evaluation, one list entry per full form; the table's keys are these words with one apostrophe left out
_FULL_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
    how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""
CONTRACTIONS = {form[:i] + form[i + 1 :]: form for form in _FULL_FORMS.split() for i, letter in enumerate(form) if letter == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
# the official call passes re.UNICODE (32) where `count` stands, so only 32 dots go
_DOTS_REMOVED = 32

CHOICE_LETTERS = "ABCDE"


@dataclass(frozen=True)
class AnswerResult:
    """`score` is the mean of `per_item`, one value in [0, 1] for each question."""

    score: float
    per_item: tuple[float, ...]


@dataclass(frozen=True)
class YesNoResult:
    """POPE's figures; "yes" is the positive class, and a ratio without any case is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


def check_paired(predictions: Sized, references: Sized) -> None:
    """Raise `DataError` with both numbers unless there are as many predictions as references, and at least one."""
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions but {len(references)} references: give one reference entry for each prediction")
    if len(predictions) == 0:
        raise DataError("0 predictions and 0 references: there is nothing to score; check that the split is not empty")


# -- VQA ---------------------------------------------------------------------------------------------------------------------------


def strip_punctuation(text: str) -> str:
    """`processPunctuation` of VQAv2's evaluation: a mark next to a space vanishes, between letters it becomes a space.

    A comma between two digits anywhere makes every mark vanish; dots go unless a digit follows.
    """
    vanish_all = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in PUNCTUATION:
        vanishes = vanish_all or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", stripped, count=_DOTS_REMOVED)


def map_words(text: str) -> str:
    """`processDigitArticle` of VQAv2's evaluation: lower case, "two" to "2", no articles, "dont" to "don't", single spaces."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_vqa(text: str) -> str:
    """VQAv2's full normalisation of one answer."""
    return map_words(strip_punctuation(_one_line(text)))


def normalize_textvqa(text: str) -> str:
    """EvalAI's normalisation as TextVQA and MoE-LLaVA use it: no commas or question marks, "'s" set apart, then as VQAv2."""
    return normalize_vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _prepare_vqav2(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_vqa(prediction), [normalize_vqa(answer) for answer in answers]
    return prediction.lower(), [answer.lower() for answer in answers]


def _prepare_lavis(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    return normalize_vqa(prediction), list(answers)


def _prepare_textvqa(prediction: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    return normalize_textvqa(prediction), [normalize_textvqa(answer) for answer in answers]


VqaProtocol = Literal["vqav2", "lavis", "textvqa"]
_VQA_PROTOCOLS: dict[str, Callable[[str, Sequence[str]], tuple[str, list[str]]]] = {
    "vqav2": _prepare_vqav2,
    "lavis": _prepare_lavis,
    "textvqa": _prepare_textvqa,
}


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    protocol: VqaProtocol = "vqav2",
    drop_equal_answers: bool = False,
) -> AnswerResult:
    """VQA accuracy (Antol et al. 2015): min(1, matches / 3), averaged over leaving out each of the annotators once.

    `protocol`: "vqav2" is the official VQAv2 evaluation (`vqaEval.py`, which TinyGPT-V runs): both sides are normalised, but only
    where annotators disagree. "lavis" is the older `vqa_eval.py` that BLIP and MiniGPT-4 also carry: the prediction is always
    normalised, the answers only lose punctuation, and case counts. "textvqa" normalises both sides always (`m4c_evaluator.py`).

    `drop_equal_answers` reproduces what the first two scripts do with annotations that lack `answer_id`: leaving out one annotator
    then leaves out all who said the same.
    """
    if protocol not in _VQA_PROTOCOLS:
        raise ConfigurationError(f"unknown VQA protocol {protocol!r}: choose one of {', '.join(_VQA_PROTOCOLS)}")
    _check_answer_lists(predictions, answers)
    prepare = _VQA_PROTOCOLS[protocol]
    return _result([_agreement(*prepare(*pair), drop_equal_answers) for pair in zip(predictions, answers, strict=True)])


def _agreement(prediction: str, answers: Sequence[str], drop_equal: bool) -> float:
    matches = answers.count(prediction)
    left_out_with_a_match = matches if drop_equal else 1
    others = (matches - left_out_with_a_match if answer == prediction else matches for answer in answers)
    return sum(min(1.0, count / 3) for count in others) / len(answers)


# -- exact match -------------------------------------------------------------------------------------------------------------------


def plain_answer(text: str) -> str:
    """Lower case, single spaces, no dots at the end. On one-line answers the same as MoE-LLaVA's conversion for GQA."""
    return " ".join(text.lower().split()).rstrip(". ")


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> AnswerResult:
    """1 where `plain_answer` of both sides is the same string, else 0; GQA's accuracy."""
    check_paired(predictions, answers)
    return _result([plain_answer(p) == plain_answer(a) for p, a in zip(predictions, answers, strict=True)])


def answer_set(text: str) -> frozenset[str]:
    """The members of a comma-separated answer in plain form; DAQUAR's "garbage_bin" and "garbage bin" are the same member."""
    members = (plain_answer(member.replace("_", " ")) for member in text.split(","))
    return frozenset(member for member in members if member)


def set_match(predictions: Sequence[str], answers: Sequence[str]) -> AnswerResult:
    """DAQUAR's accuracy (Malinowski and Fritz 2014, threshold "-1"): 1 where both answers name the same set in any order, else 0."""
    check_paired(predictions, answers)
    return _result([answer_set(p) == answer_set(a) for p, a in zip(predictions, answers, strict=True)])


# -- yes or no ---------------------------------------------------------------------------------------------------------------------


def parse_yes_no(text: str) -> Literal["yes", "no"]:
    """POPE's reading (Li et al. 2023): "no" if the first sentence holds the word "No", "no" or "not", else "yes".

    So "NO", "Nope", "I don't know" and the empty string all read as "yes": a high yes-ratio may be silence.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def yes_no_scores(predictions: Sequence[str], labels: Sequence[str]) -> YesNoResult:
    """POPE's accuracy, precision, recall, F1 and yes-ratio of free-text replies against labels "yes" or "no"."""
    check_paired(predictions, labels)
    for index, label in enumerate(labels):
        if label not in ("yes", "no"):
            raise DataError(f'labels[{index}] is {label!r}: every label must be "yes" or "no"')
    pairs = [(parse_yes_no(prediction), label) for prediction, label in zip(predictions, labels, strict=True)]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    return YesNoResult(
        accuracy=(tp + tn) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if tp else 0.0,
        yes_ratio=(tp + fp) / len(pairs),
        true_positives=tp,
        false_positives=fp,
        true_negatives=tn,
        false_negatives=fn,
    )


# -- multiple choice ---------------------------------------------------------------------------------------------------------------


def parse_choice(text: str) -> str | None:
    """ScienceQA's reading as LLaVA and MoE-LLaVA do it: "B", "B. because", or exactly one "The answer is B."; else None."""
    if text in tuple(CHOICE_LETTERS):
        return text
    if len(text) >= 3 and text[0] in CHOICE_LETTERS and text[1:3] == ". ":
        return text[0]
    stated = re.findall(r"The answer is ([A-Z]).", text)
    return stated[0] if len(stated) == 1 else None


def choice_accuracy(predictions: Sequence[str], answers: Sequence[int], n_choices: Sequence[int]) -> AnswerResult:
    """ScienceQA accuracy: 1 where the parsed letter is one of the question's `n_choices` letters and names choice number `answers`."""
    check_paired(predictions, answers)
    check_paired(predictions, n_choices)
    for index, answer in enumerate(answers):
        if not 0 <= answer < len(CHOICE_LETTERS):
            raise DataError(f"answers[{index}] is {answer}: choices are numbered 0 to {len(CHOICE_LETTERS) - 1}")
    triples = zip(predictions, answers, n_choices, strict=True)
    return _result([answer < count and parse_choice(prediction) == CHOICE_LETTERS[answer] for prediction, answer, count in triples])


# -- TinyGPT-V's rules (eval_scripts/eval_vqa.py), all more lenient than the benchmarks' own -------------------------------------------


def contains_match(predictions: Sequence[str], answers: Sequence[str], lower_answers: bool = True) -> AnswerResult:
    """1 where the answer is a substring of the lower-cased prediction: its VSR rule, and with `lower_answers=False` its GQA rule."""
    check_paired(predictions, answers)
    pairs = zip(predictions, answers, strict=True)
    return _result([(answer.lower() if lower_answers else answer) in prediction.lower() for prediction, answer in pairs])


def hateful_memes_match(predictions: Sequence[str], labels: Sequence[int]) -> AnswerResult:
    """1 where the reply reads as the label: "yes" anywhere is 1, else "no" anywhere (also in "know") is 0, else never right."""
    check_paired(predictions, labels)
    replies = [_reply(prediction).lower() for prediction in predictions]
    read = [1 if "yes" in reply else 0 if "no" in reply else None for reply in replies]
    return _result([value == label for value, label in zip(read, labels, strict=True)])


def vizwiz_contains(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> AnswerResult:
    """min(1, matches / 3), where an annotator matches if either string contains the other; so an empty reply matches everyone."""
    _check_answer_lists(predictions, answers)
    replies = [_reply(prediction).lower() for prediction in predictions]
    matches = [sum(a.lower() in reply or reply in a.lower() for a in golds) for reply, golds in zip(replies, answers, strict=True)]
    return _result([min(1.0, count / 3) for count in matches])


def _reply(text: str) -> str:
    """What TinyGPT-V counts as the reply: up to the first "###", after the last "Assistant:"."""
    return text.split("###")[0].split("Assistant:")[-1].strip()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _check_answer_lists(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    check_paired(predictions, answers)
    for index, golds in enumerate(answers):
        if isinstance(golds, str) or not golds:
            raise DataError(f"answers[{index}] is {golds!r}: give a list of at least one annotator's answer for each prediction")


def _result(per_item: Sequence[float]) -> AnswerResult:
    return AnswerResult(score=sum(per_item) / len(per_item), per_item=tuple(float(value) for value in per_item))
