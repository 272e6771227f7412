"""Conversations in LLaVA's format: MoE-LLaVA's three stages, and the usual form of people's own data.

[{"image": "folder/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}]
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from salticid.data.conversation import Turn
from salticid.data.datasets.listing import LIST, Listing
from salticid.data.tasks import identifier
from salticid.data.templates import IMAGE_MARK
from salticid.errors import DataError

SPEAKERS = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


class Llava(Listing):
    """Conversations, each about the photos of its `image` (one file or a list of them), or about none.

    Photos stand in front of the first question, wherever in it they are marked `<image>`, as LLaVA itself places them; a row without
    marks is about its photos all the same. What is said before the first question, and a last question without an answer, teach
    nothing and are left out.

    Args:
        annotations: one file or several whose rows are put together.
        images: the folder that `image` starts from.
        questions: false for a stage that learns captions alone (MoE-LLaVA's first): the questions are left out.
        task: a task of `salticid.data.tasks`, such as "vqa", whose identifier is put in front of every question.
    """

    annotations = None
    keys: ClassVar = {"conversations": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        questions: bool = True,
        task: str | None = None,
    ) -> None:
        self.questions, self.mark = questions, "" if task is None else identifier(task) + " "
        super().__init__(folder, annotations, images, skip_missing)

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        photos = [row["image"]] if isinstance(row.get("image"), str) else row.get("image") or []
        if not isinstance(photos, list) or not all(isinstance(photo, str) and photo for photo in photos):
            raise DataError(f"{name}: 'image' is no file name and no list of them but {str(row['image'])[:80]}.")
        pairs = read_pairs(row["conversations"], name)
        marks = [question.count(IMAGE_MARK) for question, _ in pairs]
        if any(marks[1:]):
            raise DataError(f"{name} marks a photo in a later question; photos stand before the first one: move {IMAGE_MARK} there.")
        if sum(marks) not in ({0, len(photos)} if photos else {0}):
            raise DataError(f"{name} marks {sum(marks)} photos with {IMAGE_MARK} and names {len(photos)} in 'image'; make them equal.")
        if any(IMAGE_MARK in answer for _, answer in pairs):
            raise DataError(f"{name} has {IMAGE_MARK} in an answer, where no photo can stand; take it out.")
        if pairs:
            yield [photos, [[without_marks(question), answer] for question, answer in pairs]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return [Turn(self.mark + question if self.questions else "", answer) for question, answer in record[1]]


def read_pairs(conversation: list[Any], name: str) -> list[tuple[str, str]]:
    """(question, answer) of each round, as they were written.

    Raises:
        DataError: something is no turn of `SPEAKERS`, or a turn does not answer the one before it.
    """
    spoken: list[tuple[str, str]] = []
    for turn in conversation:
        role = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise DataError(f"{name} has a turn that is not {{from: {' | '.join(SPEAKERS)}, value: text}} but {str(turn)[:80]}.")
        spoken.append((role, turn["value"]))
    if spoken and spoken[0][0] == "answer":
        spoken = spoken[1:]
    if len(spoken) % 2:
        spoken = spoken[:-1]
    roles = [role for role, _ in spoken]
    if roles != ["question", "answer"] * (len(spoken) // 2):
        raise DataError(f"{name}: questions and answers do not take turns; they are {', '.join(roles[:6])}.")
    values = [value for _, value in spoken]
    return list(zip(values[::2], values[1::2], strict=True))


def without_marks(question: str) -> str:
    """The question without its photos' marks; one that had none keeps its every blank."""
    return question.replace(IMAGE_MARK, "").strip() if IMAGE_MARK in question else question
