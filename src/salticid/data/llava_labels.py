"""Which tokens LLaVA's training script learns, token by token, for runs that must repeat one of its.

`tokenize.py` learns each answer and its end, and nothing can shift that. Upstream (`preprocess_phi`, `preprocess_v1` and
`preprocess_plain` of `moellava/train/train.py`) instead tokenises the whole conversation, counts the tokens of its pieces, and hopes
that the counts add up. Where they do not, it learns nothing of that conversation:

* a round with two answers in it, or with none, ends the counting;
* a padding token that is also the end of an answer is not counted, so that every conversation is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salticid.data.conversation import Example
from salticid.data.templates import IMAGE_MARK, Template
from salticid.data.tokenize import IGNORE_INDEX, Tokens
from salticid.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class LabelRule:
    """Numbers in upstream's counting.

    start: tokens in front of everything. end: tokens that end an answer and are no part of the split text. shared: tokens of the
    question's text that belong to the answer's (the blank in front of the answer) or that the tokenizer puts in front of every text.
    """

    start: int
    end: int
    shared: int


# "plain" learns all but the photo.
LABEL_RULES: dict[str, LabelRule | None] = {
    "phi": LabelRule(start=0, end=1, shared=1),  # also StableLM and Qwen: no token in front of a text
    "v1": LabelRule(start=1, end=0, shared=2),  # also OpenChat: one in front of each, which stands for the end of the answer before
    "plain": None,
}


def llava_labels(text: str, tokenizer: Any, template: Template, rule: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a whole conversation as `template.prompt` writes it, one placeholder per photo.

    Raises:
        ConfigurationError: an unknown rule.
    """
    if rule not in LABEL_RULES:
        raise ConfigurationError(f"unknown label rule {rule!r}; known: {', '.join(LABEL_RULES)}")
    ids = _token_ids(text, tokenizer)
    numbers = LABEL_RULES[rule]
    if numbers is None:
        photo = len(_token_ids(IMAGE_MARK, tokenizer))
        return ids, [IGNORE_INDEX] * photo + ids[photo:]
    labels = [IGNORE_INDEX] * len(ids)
    reached = numbers.start
    for round_ in text.split(template.answer_end):
        pieces = round_.split(template.question_end + template.answer_start)
        if len(pieces) != 2:
            break
        question = pieces[0] + template.question_end + template.answer_start
        asked = reached + len(_token_ids(question, tokenizer)) - numbers.shared
        reached += len(_token_ids(round_, tokenizer)) + numbers.end
        labels[asked:reached] = ids[asked:reached]
    counted = sum(token != tokenizer.pad_token_id for token in ids)
    if reached != counted and reached < tokenizer.model_max_length:
        return ids, [IGNORE_INDEX] * len(ids)
    return ids, labels


def tokenize_as_llava(
    example: Example, tokenizer: Any, template: Template, image_tokens: int, rule: str, max_length: int | None = None
) -> list[Tokens]:
    """One sequence for each conversation, cut at `max_length` as upstream cuts; otherwise as `tokenize_example`.

    Raises:
        DataError: there is no conversation, or the cut goes through a photo.
    """
    photo = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    sequences = []
    for turns in example.conversations:
        ids, labels = llava_labels(template.prompt(turns, len(example.images)), tokenizer, template, rule)
        tokens = Tokens()
        for token, label in zip(ids, labels, strict=True):
            width = image_tokens if token == photo else 1
            tokens.ids.extend([token] * width)
            tokens.labels.extend([label] * width)
        tokens.ids, tokens.labels = tokens.ids[:max_length], tokens.labels[:max_length]
        if tokens.ids.count(photo) % image_tokens:
            raise DataError(f"max_length {max_length} cuts a photo of {image_tokens} tokens; raise it, or drop the row")
        tokens.positions, tokens.conversation = list(range(len(tokens.ids))), [0] * len(tokens.ids)
        sequences.append(tokens)
    if not sequences:
        raise DataError(f"no conversation about {example.images[:1]}; drop the row")
    return sequences


def _token_ids(text: str, tokenizer: Any) -> list[int]:
    """Each piece between photos on its own; what the tokenizer puts in front of a text stands once."""
    photo = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    pieces: Sequence[list[int]] = [tokenizer(piece)["input_ids"] for piece in text.split(IMAGE_MARK)]
    front = int(bool(pieces[0]) and tokenizer.bos_token_id is not None and pieces[0][0] == tokenizer.bos_token_id)
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids.extend([photo, *piece[front:]])
    return ids
