"""Words to token ids and labels. The only place that decides which tokens are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from salticid.data.conversation import Example, Turn
from salticid.data.templates import IMAGE_MARK, Template
from salticid.errors import DataError

IGNORE_INDEX = -100


@dataclass(slots=True)
class Tokens:
    """Token ids of one sequence, and for each the label (`IGNORE_INDEX` where nothing is learned), position and conversation.

    `conversation` is 0 for the shared prefix and 1, 2, ... for the conversations behind it; each of them starts at the position
    after the prefix, as if it stood there alone.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    conversation: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], learned: bool, start: int, conversation: int) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if learned else [IGNORE_INDEX] * len(ids))
        self.positions.extend(range(start, start + len(ids)))
        self.conversation.extend([conversation] * len(ids))


def tokenize_turns(turns: Sequence[Turn], tokenizer: Any, template: Template, images: int = 0) -> tuple[list[int], list[int]]:
    """Ids and labels of one conversation after its prefix of `images` photos. Segments are tokenised one by one, so that a prompt's
    ids at run time are exactly those of training."""
    ids: list[int] = []
    labels: list[int] = []
    for segment in template.segments(turns, images):
        piece = tokenizer(segment.text, add_special_tokens=False)["input_ids"]
        ids.extend(piece)
        labels.extend(piece if segment.learned else [IGNORE_INDEX] * len(piece))
    return ids, labels


def tokenize_example(
    example: Example, tokenizer: Any, template: Template, image_tokens: int, max_length: int | None = None, pack: bool = True
) -> list[Tokens]:
    """Tokenise an example: one sequence with all conversations behind a shared prefix, or (`pack=False`, its plain twin) one each.

    Also when packing, a conversation whose first word is learned (a caption without a question) gets a sequence of its own.

    Args:
        image_tokens: placeholders per photo.
        max_length: conversations that would reach past it are left out; the prefix and one conversation must fit.

    Raises:
        DataError: there is no conversation, or not even the first fits.
    """
    prefix = tokenizer(template.prefix(len(example.images)).replace(IMAGE_MARK, IMAGE_MARK * image_tokens), add_special_tokens=False)[
        "input_ids"
    ]
    sequences: list[Tokens] = []
    for turns in example.conversations:
        ids, labels = tokenize_turns(turns, tokenizer, template, len(example.images))
        if not ids:
            continue
        # A first word that is learned is predicted from the prefix, so the prefix must stand right before it.
        shares = pack and bool(sequences) and labels[0] == IGNORE_INDEX
        used = len(sequences[-1].ids) if shares else len(prefix)
        if max_length is not None and used + len(ids) > max_length:
            continue
        if not shares:
            sequences.append(Tokens())
            sequences[-1].add(prefix, learned=False, start=0, conversation=0)
        tokens = sequences[-1]
        number = (tokens.conversation[-1] if tokens.conversation else 0) + 1
        tokens.add(ids, learned=False, start=len(prefix), conversation=number)
        tokens.labels[-len(ids) :] = labels
    if not sequences:
        raise DataError(
            f"no conversation of {example.images[:1]} fits: {len(example.conversations)} given, {len(prefix)} tokens of prefix, "
            f"max_length {max_length}; raise max_length or drop the row"
        )
    return sequences
