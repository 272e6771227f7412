"""Conversations and instructions of TinyGPT-V's stage 4 (MiniGPT-v2's), in its wording."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from salticid.data.conversation import Turn
from salticid.data.datasets.listing import COCO_2014, LIST, TEXT_OR_NUMBER, CleanListing, Listing, check_row
from salticid.data.datasets.llava import read_pairs
from salticid.data.templates import IMAGE_MARK
from salticid.errors import DataError

PREFIX = "COCO_train2014_"
INSTANCE = {"instruction_with_input": (str,), "output": (str,)}


class CocoConversation(Listing):
    """Several rounds about one photo of COCO: `{"id": "000000215677", "conversations": [{"from": "human", "value": "..."}, ...]}`.

    Args:
        prefix: photos are this, the `id` and `.jpg`; `""` for COCO's 2017 naming.
    """

    annotations = "conversation_58k.json"
    images = COCO_2014
    keys: ClassVar = {"id": TEXT_OR_NUMBER, "conversations": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        prefix: str = PREFIX,
    ) -> None:
        self.prefix = prefix
        super().__init__(folder, annotations, images, skip_missing)

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        if pairs := read_pairs(row["conversations"], name):
            yield [photo_name(self.prefix, row["id"]), pairs]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        (question, answer), *later = record[1]
        # Upstream puts a space behind every question; behind one about a photo, the template does.
        return [Turn(on_one_line(question), answer), *(Turn(asked + " ", said) for asked, said in later)]


class MultitaskConversation(CocoConversation):
    """MiniGPT-v2's conversations that change between tasks, in the same form as `CocoConversation`."""

    annotations = "multitask_conversation.json"


class CocoInstruction(CleanListing):
    """One question and one long answer about a photo of COCO, in LLaVA's form; the question is cleaned, the answer is not.

    Args:
        prefix: see `CocoConversation`.
    """

    annotations = "detail_23k.json"
    images = COCO_2014
    keys: ClassVar = {"id": TEXT_OR_NUMBER, "conversations": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
        prefix: str = PREFIX,
    ) -> None:
        self.prefix = prefix
        super().__init__(folder, annotations, images, skip_missing, clean)

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        for question, answer in read_pairs(row["conversations"], name)[:1]:
            yield [photo_name(self.prefix, row["id"]), question, answer]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return [Turn(self.tidy(on_one_line(record[1])), record[2])]


class LlavaReason(CocoInstruction):
    """LLaVA's questions that need reasoning; see `CocoInstruction`."""

    annotations = "complex_reasoning_77k.json"


class UnnaturalInstruction(CleanListing):
    """Unnatural Instructions, text alone: `{"instances": [{"instruction_with_input": "...", "constraints": "...", "output": "..."}]}`.

    The first instance of each row is taken, with its constraints behind the instruction. arXiv 2212.09689.
    """

    annotations = "filtered_unnatural_instruction.json"
    keys: ClassVar = {"instances": LIST}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        if not row["instances"]:
            raise DataError(f"{name} has no instance; fetch the file again.")
        instance = row["instances"][0]
        check_row(instance, INSTANCE, 0, self.files[0])
        constraints = instance.get("constraints")
        asked = instance["instruction_with_input"] + (f" {constraints}" if constraints is not None else "")
        yield [None, asked, instance["output"]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return [Turn(self.tidy(record[1]), self.tidy(record[2]))]


def photo_name(prefix: str, number: str | int) -> str:
    """File of a COCO photo; a number has twelve digits."""
    return f"{prefix}{number:012d}.jpg" if isinstance(number, int) else f"{prefix}{number}.jpg"


def on_one_line(question: str) -> str:
    """The question without marks of photos and line breaks, as upstream removes them: words on both sides of a break are joined."""
    return question.replace(IMAGE_MARK, "").replace("\n", "").strip()
