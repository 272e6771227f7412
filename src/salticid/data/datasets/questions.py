"""Published questions about photos with short answers, in the words of TinyGPT-V's stage 4."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from salticid.data.conversation import Turn
from salticid.data.datasets.files import read_json
from salticid.data.datasets.listing import COCO_2014, LIST, TEXT, CleanListing
from salticid.data.options import check_choice
from salticid.errors import ConfigurationError, DataError

OCR_SPLITS = {"train": 1, "validation": 2, "test": 3}


class Vqa(CleanListing):
    """VQAv2 and OK-VQA as LAVIS distributes them: `{"image": "train2014/COCO_...jpg", "question": "...", "answer": ["yes", ...]}`.

    The list holds the answers of ten people; one of them is drawn, so a common answer is drawn often.
    """

    annotations = "vqa_train.json"
    images = COCO_2014
    keys: ClassVar = {"image": TEXT, "question": TEXT, "answer": (list, str)}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        yield [row["image"].rpartition("/")[2], row["question"], check_answers(answers, name)]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return self.turn("vqa", self.tidy(record[1]), chance.choice(record[2]), chance)


class OkVqa(Vqa):
    """OK-VQA, questions that need knowledge from outside the photo; see `Vqa`."""

    annotations = "okvqa_train.json"


class AokVqa(CleanListing):
    """A-OKVQA: `{"image": "...", "question": "...", "direct_answers": [...], "choices": [...], "correct_choice_idx": 0}`.

    `answers="direct"` draws one of ten free answers, as upstream does; `"choice"` names the choices behind the question and answers with
    the right one. Without `image` (the authors' own file) the photo is `image_id` in COCO's 2017 naming, `000000000009.jpg`.
    """

    annotations = "aokvqa_v1p0_train.json"
    images = COCO_2014
    keys: ClassVar = {"question": TEXT, "direct_answers": LIST, "choices": LIST}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
        answers: str = "direct",
    ) -> None:
        check_choice("answers", answers, ("direct", "choice"))
        self.answers = answers
        super().__init__(folder, annotations, images, skip_missing, clean)

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        image, number, right = row.get("image"), row.get("image_id"), row.get("correct_choice_idx")
        if not isinstance(image, str) and not isinstance(number, int):
            raise DataError(f"{name} names no photo; it needs 'image' or 'image_id'.")
        photo = image.rpartition("/")[2] if isinstance(image, str) else f"{number:012d}.jpg"
        if self.answers == "direct":
            yield [photo, row["question"], check_answers(row["direct_answers"], name)]
            return
        choices = check_answers(row["choices"], name)
        if not isinstance(right, int) or not 0 <= right < len(choices):
            raise DataError(f"{name}: 'correct_choice_idx' is {right!r}, which is none of {len(choices)} choices; use the training file.")
        yield [photo, row["question"], [choices[right]], choices]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        _, question, answers, *choices = record
        # Choices behind the cleaned question: their commas and full stop are what tells them apart.
        asked = self.tidy(question) + (f" Choose from {', '.join(map(self.tidy, choices[0]))}." if choices else "")
        return self.turn("vqa", asked, chance.choice(answers), chance)


class Gqa(CleanListing):
    """GQA's balanced questions as LAVIS distributes them: `{"image": "2370799.jpg", "question": "...", "answer": "no"}`."""

    annotations = "train_balanced_questions.json"
    images = "images"
    keys: ClassVar = {"image": TEXT, "question": TEXT, "answer": TEXT}

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        yield [row["image"], row["question"], row["answer"]]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return self.turn("vqa", self.tidy(record[1]), record[2], chance)


class OcrVqa(CleanListing):
    """OCR-VQA, book covers: `{"0099182009": {"imageURL": "...jpg", "questions": [...], "answers": [...], "split": 1}}`.

    A photo is named after the book's key with the ending of `imageURL`, or with `extension` where all were saved in one format. `split`
    is one of "train", "validation" and "test".
    """

    annotations = "dataset.json"
    images = "images"
    keys: ClassVar = {"key": TEXT, "imageURL": TEXT, "questions": LIST, "answers": LIST, "split": (int,)}

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | Sequence[str] | None = None,
        images: str | None = None,
        skip_missing: float = 0.0,
        clean: bool = True,
        split: str = "train",
        extension: str | None = None,
    ) -> None:
        check_choice("split", split, OCR_SPLITS)
        if extension is not None and not (isinstance(extension, str) and extension.startswith(".")):
            raise ConfigurationError(f"extension is an ending such as .jpg, not {extension!r}")
        self.split, self.extension = OCR_SPLITS[split], extension
        super().__init__(folder, annotations, images, skip_missing, clean)

    def entries(self, path: Path) -> Iterable[Any]:
        books = read_json(path.parent, path.name)
        if not isinstance(books, dict):
            raise DataError(f"{path} holds no books by their keys; fetch the file again or check the option 'annotations'.")
        return ({"key": key, **book} if isinstance(book, dict) else book for key, book in books.items())

    def keep(self, row: dict[str, Any], name: str) -> Iterator[list[Any]]:
        questions, answers = row["questions"], row["answers"]
        if row["split"] != self.split:
            return
        if len(questions) != len(answers):
            raise DataError(f"{name} has {len(questions)} questions and {len(answers)} answers; fetch the file again.")
        photo = row["key"] + (self.extension or os.path.splitext(row["imageURL"])[1])
        for question, answer in zip(questions, answers, strict=True):
            yield [photo, str(question), str(answer)]

    def speak(self, record: list[Any], chance: random.Random) -> Sequence[Turn]:
        return self.turn("vqa", self.tidy(record[1]), record[2], chance)


def check_answers(answers: list[Any], name: str) -> list[str]:
    """The answers; raises DataError where there are none or one is no text."""
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{name} has no answers in words; it holds {str(answers)[:80]}.")
    return answers
