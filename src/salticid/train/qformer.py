"""Run Q-Former pretraining from its recipe: build, train, publish. A run that was cut off goes on from its last checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from salticid.checkpoints.qformer import start_from
from salticid.checkpoints.vision_weights import load_vision
from salticid.data.augment import Augmentation
from salticid.data.caption_text import START, add_text_branch_tokens
from salticid.engine.catalog import find_model, find_part
from salticid.errors import CheckpointError, ConfigurationError
from salticid.models import SalticidImageProcessor
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel
from salticid.models.vision import MEASURED_PHOTOS
from salticid.train.captioned import CaptionCollator, CaptionPairs, DrawnPairs, DrawnViews, captioned_photos
from salticid.train.data import TrainingData
from salticid.train.feature_cache import cached_features
from salticid.train.freezing import learning_parameters
from salticid.train.publish import publishing
from salticid.train.qformer_recipe import QFormerRecipe
from salticid.train.recipe import DataRecipe
from salticid.train.resume import earlier_run, keep_recipe
from salticid.train.tally import Tally
from salticid.train.trainer import ResumableTrainer, training_arguments

LOSSES = ("contrastive_loss", "matching_loss", "generation_loss", "locality_loss", "box_loss", "name_loss")


def run_qformer(recipe: QFormerRecipe, resume: bool = True, accept_changes: bool = False) -> Path:
    """Train as the recipe says and write the Q-Former with its tower to `recipe.output`; returns that folder.

    Checkpoints, `resume` and `training.json` are as in `run_stage`; negatives come from each device's own batch.

    Raises:
        ConfigurationError, CheckpointError, DataError: see the recipe, the parts and the data.
    """
    checkpoints, last = earlier_run(recipe, resume, accept_changes)
    set_seed(recipe.seed)
    model, image_processor, tokenizer = build_qformer(recipe)
    if model.config.vision_standardized and not model.vision_tower.feature_mean.any():  # nor measured by the run that it starts from
        _standardize(recipe, model, image_processor)
    data = _data(recipe, model, image_processor)
    steps = math.ceil(len(data) / recipe.schedule.step_examples)
    set_seed(recipe.seed)  # the same dropout, whether features had to be computed or not
    trainer = QFormerTrainer(
        recipe=recipe,
        model=model,
        train_dataset=data,
        data_collator=CaptionCollator(tokenizer, image_processor, recipe.data.max_tokens, model.config.boxed_queries),
        args=training_arguments(recipe, checkpoints, steps),
    )
    keep_recipe(checkpoints, recipe)
    report = trainer.run(last) | {
        "losses": next(
            (
                {name: entry[name] for name in LOSSES if name in entry}
                for entry in reversed(trainer.state.log_history)
                if any(name in entry for name in LOSSES)
            ),
            None,
        ),
        "temperature": model.temperature.item(),
        "photos": len(data.photos) if isinstance(data, CaptionPairs) else sum(map(len, data.data.mixture.sources)),
    }
    with publishing(recipe.output, report) as folder:
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return recipe.output


def build_qformer(recipe: QFormerRecipe) -> tuple[QFormerPretrainingModel, SalticidImageProcessor, PreTrainedTokenizerBase]:
    """The model before its first step, in float32: the pretrained tower, and a Q-Former that starts as the recipe says.

    Raises:
        ConfigurationError: parts do not fit each other. CheckpointError, ModelNotFoundError: weights or tokenizer are missing or foreign.
    """
    tokenizer = add_text_branch_tokens(_tokenizer(recipe.tokenizer))
    start: Any = tokenizer.convert_tokens_to_ids(START)
    try:
        config = QFormerPretrainingConfig(
            vision_config=recipe.vision,
            connector_config=recipe.connector,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            start_token_id=start,
            projection_size=recipe.projection_size,
            **recipe.model,
        )
    except TypeError as error:
        raise ConfigurationError(f"model: {error}") from error
    longest = config.qformer.max_position_embeddings
    if recipe.data.max_tokens > longest:
        raise ConfigurationError(f"data.max_tokens is {recipe.data.max_tokens} but the Q-Former has {longest} positions for text")
    model = QFormerPretrainingModel(config)
    load_vision(model.vision_tower.model, find_part(recipe.vision_weights))
    if recipe.start is not None:
        start_from(model, recipe.start)
    return model, SalticidImageProcessor.from_preset(recipe.image, size=model.vision_tower.size), tokenizer


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    folder = find_model(name)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read a tokenizer from {folder}: {str(error).splitlines()[0]}") from error


def _data(recipe: QFormerRecipe, model: QFormerPretrainingModel, image_processor: SalticidImageProcessor) -> CaptionPairs | DrawnPairs:
    if recipe.data.cache and torch.accelerator.is_available():
        model.vision_tower.to(torch.accelerator.current_accelerator())
    if recipe.data.captions == "drawn":
        return _drawn_pairs(recipe, model, image_processor)
    photos, schedule, features = captioned_photos(recipe.data), recipe.schedule, None
    if recipe.data.cache:
        features = cached_features(recipe.output, model.vision_tower, image_processor, [photo.path for photo in photos])
    length = (
        round(len(photos) * schedule.epochs)
        if schedule.steps is None and schedule.epochs
        else (schedule.steps or 1) * schedule.step_examples
    )
    augmentation = Augmentation(flip=recipe.data.flip, crop=recipe.data.crop, light=recipe.data.light)
    return CaptionPairs(photos, length, recipe.seed, augmentation, Tally(recipe.data.max_unreadable), features)


def _drawn_pairs(recipe: QFormerRecipe, model: QFormerPretrainingModel, image_processor: SalticidImageProcessor) -> DrawnPairs:
    length = (recipe.schedule.steps or 1) * recipe.schedule.step_examples
    data = _drawn(recipe, recipe.data.drawn or length)
    features = None
    if recipe.data.cache:
        examples = [data.unopened(number) for number in range(len(data))]
        views, drawn_as = DrawnViews(data), repr([example.view for example in examples])
        photos: Any = [example.images[0] for example in examples]
        features = cached_features(recipe.output, model.vision_tower, image_processor, photos, views, drawn_as)
    return DrawnPairs(data, length, features)


def _standardize(recipe: QFormerRecipe, model: QFormerPretrainingModel, image_processor: SalticidImageProcessor) -> None:
    """The same after an interruption, for the same photos are drawn."""
    data = _drawn(recipe, MEASURED_PHOTOS)
    images: Any = [image for item in range(len(data)) for image in data[item].images]
    model.vision_tower.eval()
    model.vision_tower.standardize(image_processor(images, return_tensors="pt")["pixel_values"])


def _drawn(recipe: QFormerRecipe, length: int) -> TrainingData:
    given = recipe.data
    data = DataRecipe(
        folder=given.folder,
        sources=given.sources,
        flip=given.flip,
        crop=given.crop,
        light=given.light,
        max_unreadable=given.max_unreadable,
        workers=given.workers,
    )
    return TrainingData(data, length, recipe.seed)


class QFormerTrainer(ResumableTrainer):
    """Trains all but the tower at one learning rate, and logs its losses apart."""

    recipe: QFormerRecipe

    def __init__(self, recipe: QFormerRecipe, **kwargs: Any):
        super().__init__(recipe, **kwargs)
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            recipe, model = self.recipe, self.model
            learning = learning_parameters(model) if model is not None else {}
            groups = [
                {"params": chosen, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay if decayed else 0.0}
                for decayed in (True, False)
                if (chosen := [parameter for parameter in learning.values() if (parameter.ndim > 1) == decayed])
            ]
            self.optimizer = torch.optim.AdamW(groups, betas=recipe.betas, fused=True)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        outputs = model(**inputs, label_smoothing=self.recipe.label_smoothing, only_local=self.recipe.only_local)
        for name in LOSSES:
            if outputs.get(name) is not None:
                self._sums[name] = self._sums.get(name, 0) + outputs[name].detach()
        self._batches += 1
        return outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._batches:
            logs = {**logs, **{name: round((total / self._batches).item(), 4) for name, total in self._sums.items()}}
            self._sums, self._batches = {}, 0
        super().log(logs, start_time)
