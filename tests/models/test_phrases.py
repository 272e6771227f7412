"""The phrase head: what it adds to which token's logit, how it is fitted, and that captions alone hear of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import salticid
import salticid.quant
from salticid.checkpoints.load import load_model, load_processor
from salticid.errors import ConfigurationError, DataError
from salticid.models.phrases import PADDING, PhraseHead, PhrasesConfig, pooled
from salticid.train import phrases as fitting
from salticid.train.freezing import freeze_except, learning_parameters
from salticid.train.phrases import fit_phrases, reduced_rank
from salticid.train.recipe import PartRecipe

DOG, BOAT = "A dog runs on the grass.", "A boat sails on the sea."


def small_head() -> PhraseHead:
    """Three phrases: token 5 alone; 7 after 5; 7 after 4 and 5, written in two ways."""
    head = PhraseHead(PhrasesConfig(count=3, topics=2, spellings=4, longest=3), width=2)
    head.tokens.copy_(torch.tensor([[PADDING, PADDING, 5], [PADDING, 5, 7], [4, 5, 7], [6, 5, 7]]))
    head.numbers.copy_(torch.tensor([0, 1, 2, 2]))
    return head


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], {5: 1.0}),
        ([9], {5: 1.0}),
        ([5], {7: 10.0}),
        ([4, 5], {7: 110.0}),
        ([9, 6, 5], {7: 110.0}),
        ([5, 9], {}),
    ],
)
def test_a_token_gains_by_all_phrases_that_it_completes(written: list[int], expected: dict[int, float]) -> None:
    logits = torch.zeros(10)
    small_head().add_to(logits, torch.tensor([1.0, 10.0, 100.0]), written)
    assert {token: logits[token].item() for token in range(10) if logits[token]} == expected


def test_scores_come_from_mean_and_maximum_of_the_features() -> None:
    head, features = small_head(), torch.randn(2, 5, 2, generator=torch.manual_seed(0))
    head.mean.fill_(0.5)
    head.deviation.fill_(2.0)
    together = torch.cat([features.mean(1), features.amax(1)], dim=1)
    assert_close(pooled(features), together)
    roots = (together.sign() * together.abs().sqrt() - 0.5) / 2.0
    expected = head.expected(roots @ head.topics.weight.T + head.topics.bias)
    assert_close(head(features), expected)


def test_reduced_rank_is_the_ridge_where_the_rank_is_full_and_near_it_below() -> None:
    chance = torch.Generator().manual_seed(1)
    features = torch.randn(40, 6, generator=chance)
    targets = features @ torch.randn(6, 2, generator=chance) @ torch.randn(2, 9, generator=chance)
    ridge = torch.linalg.solve(features.T @ features + fitting.RIDGE * 6 * torch.eye(6), features.T @ targets)
    for rank in (6, 2):
        topics, weights = reduced_rank(features, targets, rank)
        assert topics.shape == (rank, 6)
        assert_close(features @ topics.T @ weights.T, features @ ridge, atol=1e-4, rtol=1e-3)
    topics, weights = reduced_rank(features, targets, 1)
    assert not torch.allclose(features @ topics.T @ weights.T, features @ ridge, atol=0.1), "two directions do not go through one"


@pytest.fixture
def fitted(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, torch.Tensor]:
    """A tiny model that was told of twelve photos of dogs and twelve of boats, which it tells apart by their features."""
    monkeypatch.setattr(fitting, "LONGEST", 40)  # the tiny tokenizer writes words letter by letter
    model, processor = load_model(tiny_model_folder), load_processor(tiny_model_folder)
    kinds = torch.randn(2, 2 * model.config.vision_width, generator=torch.manual_seed(2)).repeat_interleave(12, dim=0)
    seen = kinds + 0.1 * torch.randn(kinds.shape, generator=torch.manual_seed(3))
    fit_phrases(model, processor.tokenizer, [(DOG, "The dog is here.")] * 12 + [(BOAT, "The boat is here.")] * 12, seen)
    return model, processor, seen


def words_of(head: PhraseHead, tokenizer: Any) -> dict[str, int]:
    return {
        tokenizer.decode([token for token in row if token != PADDING]).strip(): number
        for row, number in zip(head.tokens.tolist(), head.numbers.tolist(), strict=True)
    }


def test_photos_expect_the_phrases_of_those_that_look_alike(fitted: tuple[Any, Any, torch.Tensor]) -> None:
    model, processor, seen = fitted
    head = model.phrases
    scores = head.expected(head.topics(head.even(seen)))
    phrases = words_of(head, processor.tokenizer)
    telling = [phrase for phrase in phrases if ("dog" in phrase or "grass" in phrase) or ("boat" in phrase or "sea" in phrase)]
    assert telling, f"no phrase names what is seen: {list(phrases)[:20]}"
    for phrase in telling:
        dogs, boats = scores[:12, phrases[phrase]].mean(), scores[12:, phrases[phrase]].mean()
        assert (dogs > boats) == ("dog" in phrase or "grass" in phrase), phrase


def test_captions_hear_of_phrases_and_questions_do_not(fitted: tuple[Any, Any, torch.Tensor]) -> None:
    model, processor, _ = fitted
    vlm = salticid.VisionLanguage(model, processor)
    photo, question = Image.new("RGB", (24, 20), "red"), "What is this?"
    captions, answer = vlm.caption(photo, max_new_tokens=8), vlm.ask(photo, question, max_new_tokens=8)
    with torch.no_grad():
        model.phrases.expected.weight.zero_()
        model.phrases.expected.bias.fill_(50.0)
    loud = salticid.VisionLanguage(model, processor)
    assert loud.ask(photo, question, max_new_tokens=8) == answer
    assert loud.ask([photo, photo], salticid.engine.vision_language.DESCRIBE, max_new_tokens=8) is not None
    heard = loud.caption(photo, max_new_tokens=8)
    assert heard != captions
    assert loud.ask_many([(photo, question), (photo, salticid.engine.vision_language.DESCRIBE)], max_new_tokens=8) == [answer, heard]


@pytest.mark.parametrize("bits", [None, 8])
def test_a_model_keeps_its_phrases(fitted: tuple[Any, Any, torch.Tensor], tmp_path: Path, bits: int | None) -> None:
    model, processor, seen = fitted
    head = model.phrases
    before = head.expected(head.topics(head.even(seen)))
    if bits is not None:
        salticid.quant.quantize_model(model, bits=bits)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(again.phrases.tokens, head.tokens)
    assert torch.equal(again.phrases.numbers, head.numbers)
    after = again.phrases.expected(again.phrases.topics(again.phrases.even(seen)))
    room = {} if bits is None else {"atol": 0.05 * before.abs().max().item(), "rtol": 0.05}
    assert_close(after, before, **room)


def test_no_stage_trains_phrases(fitted: tuple[Any, Any, torch.Tensor]) -> None:
    model, _, _ = fitted
    freeze_except(model, {"connector": PartRecipe(learning_rate=1e-3)})
    assert {name.partition(".")[0] for name in learning_parameters(model)} == {"connector"}


def test_too_few_photos_are_refused(tiny_model_folder: Path) -> None:
    model, processor = load_model(tiny_model_folder), load_processor(tiny_model_folder)
    width = 2 * model.config.vision_width
    with pytest.raises(DataError, match="no phrase is in the captions of 8 of these 3 photos"):
        fit_phrases(model, processor.tokenizer, [(DOG,), (BOAT,), (DOG,)], torch.randn(3, width))
    with pytest.raises(DataError, match="2 at least"):
        fit_phrases(model, processor.tokenizer, [(DOG,)], torch.randn(1, width))
    assert model.phrases is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 3}, "phrases has the options count; give count, topics, spellings, longest"),
        ({"count": 3, "topics": 2, "spellings": 4, "longest": 0}, "phrases.longest is 0"),
        ({"count": "3", "topics": 2, "spellings": 4, "longest": 1}, "phrases.count is '3'"),
    ],
)
def test_wrong_sizes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PhrasesConfig.from_dict(values)
