"""What a stage changes about its model before it trains: template, photos, experts, LoRA."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import nn

from salticid.checkpoints.lora import merge_attached_lora
from salticid.checkpoints.tinygpt_v import interpolate_positions
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError, MissingExtraError
from salticid.models import SalticidImageProcessor, VisionLanguageModel, VisionLanguageProcessor
from salticid.models.moe import ExpertsConfig, upcycle_language_model
from salticid.train.expert_lora import add_expert_factors, merge_expert_factors
from salticid.train.recipe import ExpertsRecipe, LoraRecipe, PhotosRecipe, StageRecipe

# Towers that read photos of any size: no position embedding, or a grid that is interpolated.
RESIZABLE = ("efficientnet_lite", "blip_2_vision_model")


def adapt(model: VisionLanguageModel, processor: VisionLanguageProcessor, recipe: StageRecipe) -> None:
    """Change model and processor, in place, as the recipe says; the new weights follow from its seed.

    Raises:
        ConfigurationError: the model cannot be changed so.
    """
    if recipe.template is not None:
        speak(model, processor, recipe.template)
    if recipe.photos is not None:
        see(model, processor, recipe.photos)
    if recipe.experts is not None:
        divide(model, recipe.experts, recipe.seed)
    if recipe.lora is not None:
        add_lora(model, recipe.lora)


def speak(model: VisionLanguageModel, processor: VisionLanguageProcessor, template: str) -> None:
    """Write conversations by another template, whose end of an answer ends generation too."""
    end = get_template(template).answer_end
    ids = processor.tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    stops = [processor.tokenizer.eos_token_id, *(ids if len(ids) == 1 else [])]
    model.config.template = template
    cast(Any, model.generation_config).eos_token_id = list(dict.fromkeys(stop for stop in stops if stop is not None))


def see(model: VisionLanguageModel, processor: VisionLanguageProcessor, photos: PhotosRecipe) -> None:
    """Prepare photos another way; another size changes the tower too, whose position embedding is interpolated."""
    changes = photos.model_dump(exclude_none=True)
    if changes.get("mode", "pad") != "pad":
        changes["background"] = None
    transform = dataclasses.replace(processor.image_processor.transform, **changes)
    if transform.size != model.config.vision_config.image_size:
        _resize(model, transform.size)
    processor.image_processor = SalticidImageProcessor(**dataclasses.asdict(transform))
    processor.image_tokens = model.config.image_tokens


def _resize(model: VisionLanguageModel, size: int) -> None:
    config, tower = model.config, model.vision_tower
    kind = config.vision_config.model_type
    if kind not in RESIZABLE:
        raise ConfigurationError(f"photos.size is {size} but {kind} reads {config.vision_config.image_size}; known to change: {RESIZABLE}")
    config.vision_config.image_size = size
    if kind == "blip_2_vision_model":
        embeddings: Any = cast(Any, tower.model).embeddings
        grid = size // config.vision_config.patch_size
        positions = interpolate_positions(embeddings.position_embedding.detach(), grid**2 + 1)
        embeddings.position_embedding = nn.Parameter(positions)
        embeddings.image_size, embeddings.num_patches, embeddings.num_positions = size, grid**2, grid**2 + 1
    tower.size, tower.grid = size, config.vision_grid
    if hasattr(model.connector, "grid"):
        cast(Any, model.connector).grid = config.vision_grid
    config._check()


def divide(model: VisionLanguageModel, recipe: ExpertsRecipe, seed: int) -> None:
    """Make experts of the dense model's feed-forward networks."""
    if model.experts is not None:
        raise ConfigurationError("the recipe adds experts but the model has some already; leave `experts` out to go on training them")
    experts = ExpertsConfig.from_dict(recipe.options)
    upcycle_language_model(
        model.language_model,
        experts,
        host_config=model.config,
        reinitialise=recipe.reinitialise,
        noise=recipe.noise,
        generator=torch.Generator().manual_seed(seed),
    )
    model.experts, model.config.experts = experts, experts.to_dict()


def add_lora(model: VisionLanguageModel, recipe: LoraRecipe) -> None:
    """Put factors beside the language model's weights; where it carries LoRA already, that goes on learning.

    Raises:
        ConfigurationError: a target is nowhere in the language model, or the LoRA that it carries has another rank.
        MissingExtraError: PEFT is not installed.
    """
    if recipe.experts:
        add_expert_factors(model, recipe.rank, recipe.alpha)
    carried = getattr(model, "peft_config", {}).get("default") if carries_lora(model) else None
    if carried is not None and carried.r != recipe.rank:
        raise ConfigurationError(f"the model carries LoRA of rank {carried.r} but lora.rank is {recipe.rank}; set it to {carried.r}")
    if carried is None and recipe.targets:
        _attach(model, recipe)


def _attach(model: VisionLanguageModel, recipe: LoraRecipe) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError("training with LoRA needs PEFT; pip install 'salticid[train]'") from error
    modules = [name for name, module in model.named_modules() if name.startswith("language_model.") and isinstance(module, nn.Linear)]
    chosen = [name for name in modules if name.rpartition(".")[2] in recipe.targets]
    if missing := [target for target in recipe.targets if not any(name.endswith(f".{target}") for name in chosen)]:
        known = sorted({name.rpartition(".")[2] for name in modules})
        raise ConfigurationError(f"lora.targets names {', '.join(missing)}, which no linear layer is called; known: {', '.join(known)}")
    config = LoraConfig(r=recipe.rank, lora_alpha=cast(Any, recipe.alpha), lora_dropout=recipe.dropout, target_modules=chosen, bias="none")
    cast(Any, model).add_adapter(config)
    for block in model.language_model.modules():
        first, *others = [getattr(block, name) for name in recipe.shared if hasattr(block, name)] or [None]
        for other in others:
            cast(Any, other).lora_A["default"] = cast(Any, first).lora_A["default"]


def carries_lora(model: nn.Module) -> bool:
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def settle_lora(model: VisionLanguageModel, recipe: LoraRecipe | None) -> None:
    """When the stage is finished: add LoRA to the weights where the recipe says so."""
    if recipe is not None and recipe.merge:
        merge_expert_factors(model)
        merge_attached_lora(model)
