"""Pretrained weights into a vision tower, from the files and folders that they are published in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salticid.checkpoints.efficientnet_lite import convert_efficientnet_lite
from salticid.checkpoints.key_table import KeyTable, build
from salticid.checkpoints.load import holds
from salticid.checkpoints.qformer import tower_weights
from salticid.checkpoints.tinygpt_v import interpolate_positions
from salticid.checkpoints.tinygpt_v_files import join_vision_biases, read_checkpoint
from salticid.checkpoints.tinygpt_v_keys import PREFIXES, vision_rules
from salticid.checkpoints.weights import read_weights
from salticid.errors import CheckpointError
from salticid.models import VisionLanguageConfig
from salticid.models.qformer import QFormerPretrainingConfig

TOWER = "vision_tower.model."


def load_vision(tower: Any, source: Path) -> None:
    """Fill `VisionTower.model` from an EfficientNet-Lite `.pth`, an EVA ViT-g `.pth`, a transformers folder, or the folder of a Q-Former
    or of a whole model, whose tower may not be packed into few bits.

    Raises:
        CheckpointError: the source is missing, damaged, or of another tower.
    """
    source, kind = Path(source), tower.config.model_type
    if not source.exists():
        raise CheckpointError(f"no vision weights at {source}; give an EfficientNet-Lite or EVA .pth, or a transformers folder")
    if source.is_file() and kind not in FILES:
        raise CheckpointError(f"{source} is a file, and {kind} has no single-file format; give a transformers folder")
    try:
        if source.is_file():
            weights = FILES[kind](source, tower)
        else:
            weights = _read_folder(source, tower)
        tower.load_state_dict(weights, strict=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{source.name} does not fit the vision tower {kind}: {reason}") from error


def _efficientnet_lite(source: Path, tower: Any) -> dict[str, Tensor]:
    return convert_efficientnet_lite(torch.load(source, map_location="cpu", weights_only=True))


def _eva(source: Path, tower: Any) -> dict[str, Tensor]:
    """BLIP-2's EVA file. It lacks the norm behind the blocks, which came with the Q-Former: that one stays as it is."""
    raw = join_vision_biases({PREFIXES["vision"] + name: tensor for name, tensor in read_checkpoint(source).items()})
    plan = KeyTable(vision_rules(tower.config.num_hidden_layers)).plan(raw)
    weights = {name.removeprefix(TOWER): build(name, sources, raw) for name, sources in plan.items()}
    own = tower.state_dict()
    positions = "embeddings.position_embedding"
    if positions in weights:
        weights[positions] = interpolate_positions(weights[positions], own[positions].shape[1])
    return {name: tensor for name, tensor in own.items() if name.startswith("post_layernorm.")} | weights


FILES: dict[str, Callable[[Path, Any], dict[str, Tensor]]] = {"efficientnet_lite": _efficientnet_lite, "blip_2_vision_model": _eva}


def _read_folder(source: Path, tower: Any) -> dict[str, Tensor]:
    if holds(source, QFormerPretrainingConfig.model_type):
        return tower_weights(source)
    if holds(source, VisionLanguageConfig.model_type):
        return _whole_model(source)
    return _transformers_folder(type(tower), source)


def _whole_model(source: Path) -> dict[str, Tensor]:
    """The tower's weights of a model folder; the others are mapped, not read."""
    return {name.removeprefix(TOWER): tensor for name, tensor in read_weights(source).items() if name.startswith(TOWER)}


def _transformers_folder(family: Any, source: Path) -> dict[str, Tensor]:
    """The tower's weights, also out of a folder that holds a language model beside it."""
    try:
        tower, report = family.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read a vision tower from {source}: {str(error).splitlines()[0]}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{source} lacks {len(missing)} weights of the vision tower, {missing[0]} among them")
    return tower.state_dict()
