"""Caption scorers against values that coco-caption printed for the same captions, and what happens at the edges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from salticid.errors import DataError
from salticid.scorers.captions import CiderD, bleu, cider_d, distinct_share, rouge_l, tokenize

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "captions.json").read_text(encoding="utf-8"))
CANDIDATES, REFERENCES = GOLDEN["candidates"], GOLDEN["references"]


@pytest.mark.parametrize(("text", "tokens"), GOLDEN["tokens"])
def test_tokens_are_those_of_coco_captions_java_tokenizer(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


def test_bleu_equals_coco_caption() -> None:
    result = bleu(CANDIDATES, REFERENCES)
    assert [result.bleu1, result.bleu2, result.bleu3, result.bleu4] == pytest.approx(GOLDEN["bleu"], abs=1e-9)
    assert result.brevity_penalty == 1.0


def test_cider_d_equals_coco_caption() -> None:
    result = cider_d(CANDIDATES, REFERENCES)
    assert result.per_item == pytest.approx(GOLDEN["cider_per_item"], abs=1e-9)
    assert result.score == pytest.approx(GOLDEN["cider"], abs=1e-9)


def test_rouge_l_equals_coco_caption() -> None:
    result = rouge_l(CANDIDATES, REFERENCES)
    assert result.per_item == pytest.approx(GOLDEN["rouge_l_per_item"], abs=1e-9)
    assert result.score == pytest.approx(GOLDEN["rouge_l"], abs=1e-9)


def test_perfect_captions_reach_the_top_of_each_scale() -> None:
    captions = ["a dog runs over wet sand", "two cats sleep on the sofa", "a red bus stops in town"]
    references = [[caption] for caption in captions]
    assert cider_d(captions, references).score == pytest.approx(10.0)
    assert bleu(captions, references).bleu4 == pytest.approx(1.0, abs=1e-6)
    assert rouge_l(captions, references).score == pytest.approx(1.0)


def test_bleu_punishes_short_candidates() -> None:
    result = bleu(["a dog"], [["a dog runs"]])
    assert result.brevity_penalty == pytest.approx(math.exp(1 - 3 / 2))
    assert result.bleu1 == pytest.approx(result.brevity_penalty)
    # no 3-gram at all: coco-caption's guards leave 1e-15 / 1e-9
    assert result.bleu3 == pytest.approx(0.01 * result.brevity_penalty)


def test_cider_d_clips_repeated_words() -> None:
    references = [["a dog runs"], ["a cat sleeps"], ["the bus stops"]]
    plain = cider_d(["a dog", "x", "x"], references).per_item[0]
    repeated = cider_d(["a dog dog dog dog", "x", "x"], references).per_item[0]
    assert 0 < repeated < plain


def test_captions_without_words_have_defined_scores() -> None:
    references = [["a dog runs", ""], ["a cat sleeps"]]
    assert cider_d(["", "..."], references).per_item == (0.0, 0.0)
    assert rouge_l(["", "..."], references).per_item == (0.0, 0.0)
    assert bleu(["", "..."], references).bleu1 == pytest.approx(0.0, abs=1e-9)
    assert cider_d(["a dog runs"], [["a dog runs"]]).score == 0.0, "one photo: every word is in every document"


def test_distinct_share_ignores_case_and_punctuation() -> None:
    assert distinct_share(["A dog.", "a dog", "A cat."]) == pytest.approx(2 / 3)
    assert distinct_share(["a man in a red shirt"] * 4) == 0.25


@pytest.mark.parametrize("scorer", [bleu, cider_d, rouge_l])
def test_what_cannot_be_paired_is_refused_with_both_numbers(scorer: Any) -> None:
    with pytest.raises(DataError, match="2 predictions but 1 references"):
        scorer(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="nothing to score"):
        scorer([], [])
    with pytest.raises(DataError, match=r"references\[1\] is \[\]"):
        scorer(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match=r"references\[0\] is 'a dog'"):
        scorer(["a dog"], ["a dog"])


def test_distinct_share_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="0 captions"):
        distinct_share([])


def test_frequencies_of_a_corpus_score_single_captions() -> None:
    corpus = [["a dog runs on the beach", "the dog runs"], ["a man in a red shirt", "a man stands"], ["two cups on a table", "cups"]]
    candidates = ["a dog on the beach", "a man in a", "a cup"]
    scorer = CiderD(corpus)
    scores = [scorer.score(candidate, refs) for candidate, refs in zip(candidates, corpus, strict=True)]
    assert tuple(scores) == cider_d(candidates, corpus).per_item


def test_with_its_end_marked_a_caption_that_breaks_off_loses() -> None:
    corpus = [["a man in a shirt", "the man in a shirt"], ["a dog in a lake", "the dog in a lake"]]
    plain, marked = CiderD(corpus), CiderD(corpus, mark_end=True)
    whole, broken = "a man in a shirt", "a man in a"
    lost = marked.score(broken, corpus[0]) / marked.score(whole, corpus[0])
    assert lost < plain.score(broken, corpus[0]) / plain.score(whole, corpus[0])
