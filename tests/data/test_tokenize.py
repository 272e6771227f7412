"""Labels stand on the assistant's words and their end, on nothing else; what is asked at run time is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salticid.checkpoints.load import load_processor
from salticid.data.conversation import Example, Turn
from salticid.data.templates import IMAGE_MARK, TEMPLATES, get_template
from salticid.data.tokenize import IGNORE_INDEX, tokenize_example, tokenize_turns
from salticid.errors import DataError

CAPTION = (Turn("Describe the photo.", "a dog on the beach"),)
TALK = (Turn("What is in this photo?", "two red cups"), Turn("Is there a dog?", "no"))
IMAGE_TOKENS = 3


@pytest.fixture(scope="module")
def processor(tiny_model_folder: Path) -> Any:
    return load_processor(tiny_model_folder)


@pytest.fixture(scope="module")
def tokenizer(processor: Any) -> Any:
    return processor.tokenizer


def learned_runs(ids: list[int], labels: list[int], tokenizer: Any) -> list[str]:
    """The pieces of text that are learned; every label is its own token."""
    runs: list[list[int]] = [[]]
    for token, label in zip(ids, labels, strict=True):
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_labels_are_the_answers_and_their_ends(tokenizer: Any, name: str, images: int) -> None:
    template = get_template(name)
    ids, labels = tokenize_turns(TALK, tokenizer, template, images)
    assert learned_runs(ids, labels, tokenizer) == [template.answer_start + turn.answer + template.answer_end for turn in TALK]
    asked = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX])
    assert asked == "".join(segment.text for segment in template.segments(TALK, images) if not segment.learned)


def test_token_by_token(tokenizer: Any) -> None:
    """`<image>` x 3, then two conversations that both start at position 3."""

    def words(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    image, start, end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_MARK, "<|im_start|>", "<|im_end|>"))
    asked, answered = words("Describe the photo."), words("a dog on the beach")
    first, second, third, fourth = (words(text) for turn in TALK for text in (turn.question, turn.answer))
    one = [*asked, start, *answered, end]
    two = [*first, start, *second, end, *third, start, *fourth, end]
    ignore = IGNORE_INDEX
    one_labels = [ignore] * (len(asked) + 1) + [*answered, end]
    two_labels = [ignore] * (len(first) + 1) + [*second, end] + [ignore] * (len(third) + 1) + [*fourth, end]

    (tokens,) = tokenize_example(Example(("photo",), (CAPTION, TALK)), tokenizer, get_template("nano"), IMAGE_TOKENS)
    assert tokens.ids == [image] * 3 + one + two
    assert tokens.labels == [ignore] * 3 + one_labels + two_labels
    assert tokens.positions == [0, 1, 2, *range(3, 3 + len(one)), *range(3, 3 + len(two))]
    assert tokens.conversation == [0] * 3 + [1] * len(one) + [2] * len(two)

    alone = tokenize_example(Example(("photo",), (CAPTION, TALK)), tokenizer, get_template("nano"), IMAGE_TOKENS, pack=False)
    assert [tokens.ids for tokens in alone] == [[image] * 3 + one, [image] * 3 + two]
    assert [tokens.labels for tokens in alone] == [[ignore] * 3 + one_labels, [ignore] * 3 + two_labels]
    assert [tokens.positions for tokens in alone] == [list(range(3 + len(one))), list(range(3 + len(two)))]
    assert [set(tokens.conversation) for tokens in alone] == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_start_of_its_training_ids(tokenizer: Any, name: str) -> None:
    """While the model is to answer turn k, it sees exactly the ids that stood before answer k in training."""
    template = get_template(name)
    ids, labels = tokenize_turns(TALK, tokenizer, template, images=1)
    for turn in range(len(TALK)):
        history = (*TALK[:turn], Turn(TALK[turn].question, ""))
        prompt, _ = tokenize_turns(history, tokenizer, template, images=1)
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] == ids[len(prompt)]
        assert not prompt or labels[len(prompt) - 1] == IGNORE_INDEX


@pytest.mark.parametrize("name", ["plain", "nano", "chatml"])
def test_the_processor_writes_the_same_prompt(processor: Any, name: str) -> None:
    """Text to ids in one go, as people call the processor, where pieces meet at special tokens or line ends."""
    template = get_template(name)
    history = (TALK[0], Turn(TALK[1].question, ""))
    prefix = template.prefix(1).replace(IMAGE_MARK, IMAGE_MARK * processor.image_tokens)
    expected = processor.tokenizer(prefix)["input_ids"] + tokenize_turns(history, processor.tokenizer, template, images=1)[0]
    wide = template.prompt(history, images=1).replace(IMAGE_MARK, IMAGE_MARK * processor.image_tokens)
    assert processor.tokenizer(wide)["input_ids"] == expected


def test_conversations_that_do_not_fit_are_left_out(tokenizer: Any) -> None:
    template = get_template("nano")

    def fit(max_length: int, pack: bool = True) -> list[int]:
        example = Example(("photo",), (TALK, CAPTION, CAPTION))
        return [len(tokens.ids) for tokens in tokenize_example(example, tokenizer, template, IMAGE_TOKENS, max_length, pack)]

    short, long = (len(tokenize_turns(turns, tokenizer, template)[0]) for turns in (CAPTION, TALK))
    assert short < long
    assert fit(3 + long + 2 * short) == [3 + long + 2 * short]
    assert fit(3 + long + 2 * short - 1) == [3 + long + short]
    assert fit(3 + long - 1) == [3 + short]
    assert fit(3 + long, pack=False) == [3 + long, 3 + short, 3 + short]
    assert fit(3 + short, pack=False) == [3 + short, 3 + short]
    with pytest.raises(DataError, match=r"no conversation .* fits: 3 given, 3 tokens of prefix, max_length 5"):
        fit(5)


def test_text_alone_and_conversations_without_a_word(tokenizer: Any) -> None:
    (tokens,) = tokenize_example(Example((), ((), CAPTION, TALK)), tokenizer, get_template("nano"), IMAGE_TOKENS)
    assert learned_runs(tokens.ids, tokens.labels, tokenizer) == ["a dog on the beach<|im_end|>", "two red cups<|im_end|>", "no<|im_end|>"]
    assert set(tokens.conversation) == {1, 2}
    with pytest.raises(DataError, match="0 given"):
        tokenize_example(Example(("photo",), ()), tokenizer, get_template("nano"), IMAGE_TOKENS)


@pytest.mark.parametrize("name", ["tinygpt_v_caption", "moe_llava_pretrain"])
def test_a_learned_first_word_stands_right_behind_its_prefix(tokenizer: Any, name: str) -> None:
    """Captions without a question: packed behind each other, the end of one would be taught to foretell the next."""
    captions = ((Turn("", "a dog"),), (Turn("", "two cups"),))
    sequences = tokenize_example(Example(("photo",), captions), tokenizer, get_template(name), IMAGE_TOKENS)
    assert len(sequences) == 2
    for tokens, text in zip(sequences, ("a dog\n", "two cups\n"), strict=True):
        first = next(place for place, label in enumerate(tokens.labels) if label != IGNORE_INDEX)
        assert tokens.conversation[first - 1] == 0
        assert learned_runs(tokens.ids, tokens.labels, tokenizer) == [text]
