"""Captions of the Flickr8k `dev` photos against five human ones each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from salticid.data.datasets.flickr8k import read_photos
from salticid.data.questions.captions import DESCRIBE
from salticid.eval.benchmarks.base import Item
from salticid.scorers.captions import bleu, cider_d, distinct_share, rouge_l

# Scores best among the constant captions that were tried; dogs and grass are the commonest things of this data set.
COMMONEST = "A dog runs through the grass."


class Flickr8kCaptions:
    """CIDEr-D and BLEU-4 as coco-caption prints them (CIDEr-D scaled by ten), ROUGE-L, and the share of distinct captions."""

    max_new_tokens = 30

    def __init__(self, folder: Path):
        self.photos = read_photos(Path(folder) / "flickr8k", "dev")
        self.items = [Item(photo.path, DESCRIBE) for photo in self.photos]

    def score(self, answers: Sequence[str]) -> dict[str, float]:
        references = [photo.captions for photo in self.photos]
        return {
            "cider_d": cider_d(answers, references).score,
            "bleu4": bleu(answers, references).bleu4,
            "rouge_l": rouge_l(answers, references).score,
            "distinct": distinct_share(answers),
        }

    def guesses(self) -> list[str]:
        return [COMMONEST] * len(self.items)
