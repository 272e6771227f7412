"""Teach a vision tower the words of captions, before a language model reads it.

A tower that was pretrained to tell a thousand kinds of things has no reason to see that someone runs, or what colour a shirt is. Which
words people use of a photo can be learned from captions without a language model in between, at a small part of the cost: a few
hundred yes-or-no questions per photo, all asked at once. Source of the idea: "From Captions to Visual Concepts and Back", arXiv
1411.4952, section 3; here with pooling in place of multiple-instance learning.

P photos, N patches, D width, W words.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from salticid.checkpoints.vision_weights import load_vision
from salticid.data.augment import Augmentation
from salticid.data.conversation import Example
from salticid.data.naming import Record, names, shares, vocabulary
from salticid.engine.catalog import find_part
from salticid.errors import ConfigurationError, DataError
from salticid.models import SalticidImageProcessor, VisionLanguageConfig
from salticid.models.photos import read_photo
from salticid.models.vision import LEAST_DEVIATION, MEASURED_PHOTOS, VisionTower
from salticid.scorers.ranking import mean_average_precision
from salticid.train.captioned import PhotosInTurn
from salticid.train.data import build_sources
from salticid.train.freezing import freeze_part, parameter_groups
from salticid.train.publish import publishing
from salticid.train.recipe import DataRecipe
from salticid.train.resume import earlier_run, keep_recipe
from salticid.train.tally import Tally
from salticid.train.trainer import ResumableTrainer, training_arguments
from salticid.train.words_recipe import WordDataRecipe, WordsRecipe

HEAD_FILE, WORDS_FILE = "words.safetensors", "words.json"
MEASURED = 3
"""Photos kept aside that a word must be true of, for its average precision to count."""
BATCH = 32
"""Photos that are seen at a time where nothing learns."""
BLEND = 0.4
"""Both parameters of the beta distribution that blends photos: mostly one of the two."""


def run_words(recipe: WordsRecipe, resume: bool = True, accept_changes: bool = False) -> Path:
    """Train as the recipe says and write the tower to `recipe.output`; returns that folder, which `vision_weights` of other recipes take.

    `words.json` lists the words, `words.safetensors` holds the layer that names them, and `training.json` says how well that goes on the
    photos kept aside. Checkpoints and `resume` are as in `run_stage`.

    Raises:
        ConfigurationError, CheckpointError, DataError: see the recipe, the tower and the data.
    """
    checkpoints, last = earlier_run(recipe, resume, accept_changes)
    set_seed(recipe.seed)
    learned, kept = split(named_photos(recipe.data), recipe.data.held_out, recipe.seed)
    words = vocabulary([said for _, said in learned], recipe.data.at_least)
    if not words:
        raise DataError(f"no word is used of {recipe.data.at_least} photos; give more data, or lower data.at_least")
    config = VisionLanguageConfig(vision_config=recipe.vision)
    tower = VisionTower(config)
    load_vision(tower.model, find_part(recipe.vision_weights))
    images = SalticidImageProcessor.from_preset(recipe.image, size=tower.size)
    data = _in_turn(recipe, learned, words)
    model = WordNamer(tower, config.vision_width, frequencies(data), recipe.dropout)
    freeze_part(model.vision_tower, "tower", recipe.tower.only)
    model.standardize(WordCollator(images)([data[item] for item in range(min(MEASURED_PHOTOS, len(learned)))])["pixel_values"])
    set_seed(recipe.seed)
    trainer = WordsTrainer(
        recipe=recipe,
        model=model,
        train_dataset=data,
        data_collator=WordCollator(images),
        args=training_arguments(recipe, checkpoints, math.ceil(len(data) / recipe.schedule.step_examples)),
    )
    keep_recipe(checkpoints, recipe)
    report = trainer.run(last) | trainer.tally | {"photos": len(learned), "words": len(words)}
    report["held_out"] = measure(model, images, kept, words) if kept else None
    with publishing(recipe.output, report) as folder:
        model.vision_tower.model.save_pretrained(folder)
        images.save_pretrained(folder)
        save_file(model.plain_head(), folder / HEAD_FILE)
        (folder / WORDS_FILE).write_text(json.dumps(words) + "\n", encoding="utf-8")
    return recipe.output


Named = tuple[Path, list[frozenset[str]]]
"""A photo, and the words of each sentence about it."""


def named_photos(recipe: WordDataRecipe) -> list[Named]:
    """Every photo of the data sets of which something is said, in their order.

    Raises:
        ConfigurationError: a data set without records of photos. DataError: nothing is said of any photo.
    """
    found: list[Named] = []
    for given, source in zip(recipe.sources, build_sources(DataRecipe(folder=recipe.folder, sources=recipe.sources)), strict=True):
        photos: Sequence[Record] | None = getattr(source, "photos", None)
        if photos is None:
            raise ConfigurationError(f"{given.kind} keeps no list of what is said of its photos; give flickr8k, coco or daquar")
        found += [(photo.path, said) for photo in photos if any(said := names(photo))]
    if not found:
        raise DataError("the data sets say nothing about their photos; give captions, boxes or questions")
    return found


def split(photos: Sequence[Named], held_out: int, seed: int) -> tuple[list[Named], list[Named]]:
    """Photos to learn from, and `held_out` of them kept aside.

    Raises:
        ConfigurationError: nothing would be left to learn from.
    """
    if held_out >= len(photos):
        raise ConfigurationError(f"data.held_out is {held_out} and there are {len(photos)} photos; keep fewer aside")
    aside = set(random.Random(f"{seed}/aside").sample(range(len(photos)), held_out))
    return [photo for number, photo in enumerate(photos) if number not in aside], [photos[number] for number in sorted(aside)]


class WordPhotos(PhotosInTurn):
    """Photos with the words that people use of them, as (W,) shares between 0 and 1."""

    def __init__(self, photos: Sequence[Named], words: Sequence[str], *args: Any):
        super().__init__(photos, *args)
        index = {word: number for number, word in enumerate(words)}
        self.shares, self.words = [shares(said, index) for _, said in photos], len(words)

    def show(self, number: int, chance: random.Random) -> dict[str, Any]:
        """`image` and `present` (W,)."""
        shown = self.augmentation(Example((read_photo(self.photos[number][0]),), ()), chance)
        return {"image": shown.images[0], "present": self.present(number)}

    def present(self, number: int) -> torch.Tensor:
        """How sure each word is of the photo, (W,)."""
        present_W = torch.zeros(self.words)
        for word, share in self.shares[number].items():
            present_W[word] = share
        return present_W


def frequencies(photos: WordPhotos) -> torch.Tensor:
    """How often each word is true, (W,)."""
    sums_W = torch.zeros(photos.words)
    for number in range(len(photos.photos)):
        sums_W += photos.present(number)
    return sums_W / len(photos.photos)


def _in_turn(recipe: WordsRecipe, photos: Sequence[Named], words: Sequence[str]) -> WordPhotos:
    schedule, data = recipe.schedule, recipe.data
    length = (schedule.steps or 0) * schedule.step_examples or round(len(photos) * (schedule.epochs or 1))
    augmentation = Augmentation(flip=data.flip, crop=data.crop, light=data.light)
    return WordPhotos(photos, words, length, recipe.seed, augmentation, Tally(data.max_unreadable))


class WordCollator:
    """Photos and their words to what `WordNamer` takes."""

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor

    def __call__(self, photos: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = self.image_processor([photo["image"] for photo in photos], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "present": torch.stack([photo["present"] for photo in photos])}


class WordNamer(nn.Module):
    """A linear layer on the mean and the maximum of a tower's patches; it starts from how often each word is true, whatever it sees.

    Both are standardised as `standardize` measures them: the layer learns many times faster from features of one size.
    """

    pooled_mean: torch.Tensor
    pooled_deviation: torch.Tensor

    def __init__(self, tower: VisionTower, width: int, frequencies_W: torch.Tensor, dropout: float = 0.0):
        super().__init__()
        self.vision_tower, self.dropout = tower, dropout
        self.register_buffer("pooled_mean", torch.zeros(2 * width))
        self.register_buffer("pooled_deviation", torch.ones(2 * width))
        self.head = nn.Linear(2 * width, len(frequencies_W))
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.logit(frequencies_W, eps=1e-4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(P, 3, H, W) to logits (P, W)."""
        pooled_PD = (self._pooled(pixel_values) - self.pooled_mean) / self.pooled_deviation
        logits: torch.Tensor = self.head(F.dropout(pooled_PD, self.dropout, self.training))
        return logits

    @torch.no_grad()
    def standardize(self, pixel_values: torch.Tensor) -> None:
        """Measure mean and deviation of the pooled features on these photos (P, 3, H, W)."""
        self.eval()
        pooled_PD = torch.cat([self._pooled(batch) for batch in pixel_values.split(BATCH)]).float()
        self.pooled_mean.copy_(pooled_PD.mean(dim=0))
        self.pooled_deviation.copy_(pooled_PD.std(dim=0).clamp_(min=LEAST_DEVIATION))

    def plain_head(self) -> dict[str, torch.Tensor]:
        """`weight` (W, 2 D) and `bias` (W,) of the same layer for features as they come."""
        weight_WD = self.head.weight.detach() / self.pooled_deviation
        return {"weight": weight_WD.contiguous(), "bias": self.head.bias.detach() - weight_WD @ self.pooled_mean}

    def _pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features_PND = self.vision_tower(pixel_values)
        return torch.cat([features_PND.mean(dim=1), features_PND.amax(dim=1)], dim=1)


def naming_loss(logits_PW: torch.Tensor, present_PW: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in nats: summed over words, mean over photos."""
    return F.binary_cross_entropy_with_logits(logits_PW.float(), present_PW, reduction="sum") / len(logits_PW)


@torch.inference_mode()
def measure(model: WordNamer, images: Any, kept: Sequence[Named], words: Sequence[str]) -> dict[str, Any]:
    """Mean average precision over words, its value by chance (the mean share of photos that a word is true of), and the loss."""
    photos = WordPhotos(kept, words, len(kept), 0, Augmentation(), Tally(len(kept)))
    device, collate = model.head.weight.device, WordCollator(images)
    model.eval()
    logits, present = [], []
    for start in range(0, len(kept), BATCH):
        batch = collate([photos[item] for item in range(start, min(start + BATCH, len(kept)))])
        logits.append(model(batch["pixel_values"].to(device)).float().cpu())
        present.append(batch["present"])
    logits_PW, present_PW = torch.cat(logits), torch.cat(present)
    true_PW = present_PW >= 0.5
    counted = true_PW.sum(dim=0) >= MEASURED
    return {
        "photos": len(kept),
        "words": int(counted.sum()),
        "mean_average_precision": round(mean_average_precision(logits_PW, true_PW, MEASURED), 4),
        "by_chance": round(float(true_PW[:, counted].double().mean()), 4) if counted.any() else 0.0,
        "loss": round(float(naming_loss(logits_PW, present_PW)), 3),
    }


class WordsTrainer(ResumableTrainer):
    """Trains tower and head at rates of their own, on blended photos now and then."""

    recipe: WordsRecipe

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model: Any = self.model
            groups = parameter_groups(model, {"vision_tower": self.recipe.tower, "head": self.recipe.head})
            self.optimizer = torch.optim.AdamW(groups, betas=self.recipe.betas, fused=True)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        pixels, present_PW = inputs["pixel_values"], inputs["present"]
        if torch.rand(()) < self.recipe.mix:
            share, other = torch.distributions.Beta(BLEND, BLEND).sample(), torch.randperm(len(pixels))
            pixels, present_PW = (share * each + (1 - share) * each[other] for each in (pixels, present_PW))
        return naming_loss(model(pixels), present_PW)
