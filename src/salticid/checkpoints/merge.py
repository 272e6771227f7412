"""One model of several: their weights added up by shares.

Models that went on from the same weights may be averaged, and the mean often answers better than each (model soups, Wortsman et al.,
arXiv 2203.05482; of rewarded models, Ramé et al., arXiv 2406.16768). Shares below zero go on along a way: 1.5 of a model and -0.5 of the
one that it began as (Zheng et al., arXiv 2404.16792).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from salticid.checkpoints.load import load_processor, load_unpacked
from salticid.checkpoints.lora import save_model
from salticid.checkpoints.save import new_folder
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor


def merge_folders(sources: Sequence[Path], out: Path, shares: Sequence[float] | None = None) -> None:
    """Add up the weights of model folders in float32; all else is as in the first.

    Args:
        sources: two or more folders, of models with the same parts and the same words. Small weights are unpacked, where
            `salticid.quant` was imported.
        out: the new folder; it appears whole or not at all.
        shares: one for each folder, 1 together; default equal ones.

    Raises:
        ConfigurationError: fewer than two models, shares that do not fit, or models that do not fit each other.
        ModelNotFoundError, CheckpointError: there is no such model, or `out` exists.
    """
    if len(sources) < 2:
        raise ConfigurationError("one model alone is no merge; give two or more that were trained from the same one")
    chosen = list(shares or [1 / len(sources)] * len(sources))
    if len(chosen) != len(sources):
        raise ConfigurationError(f"{len(chosen)} shares for {len(sources)} models; give one for each, in their order")
    if not math.isclose(sum(chosen), 1.0, abs_tol=1e-6):
        raise ConfigurationError(f"the shares {', '.join(f'{share:g}' for share in chosen)} come to {sum(chosen):g}; they must come to 1")
    with new_folder(out) as folder:
        merged, processor = _load(sources[0])
        with torch.no_grad():
            own = merged.state_dict()
            names = {weight.data_ptr(): name for name, weight in own.items() if weight.is_floating_point()}.values()  # tied ones once
            for name in names:
                own[name].mul_(chosen[0])
            for source, share in zip(sources[1:], chosen[1:], strict=True):
                other, other_processor = _load(source)
                _refuse_misfits(sources[0], merged, processor, source, other, other_processor)
                theirs = other.state_dict()
                for name in names:
                    own[name].add_(theirs[name], alpha=share)
        save_model(merged, folder)
        processor.save_pretrained(folder)


def _load(source: Path) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    model = load_unpacked(Path(source))
    if any(".lora_" in name for name in model.state_dict()):
        raise ConfigurationError(f"{source} carries LoRA, whose factors cannot be added up; train it with lora.merge: true first")
    return model, load_processor(Path(source))


def _refuse_misfits(
    first: Path,
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    source: Path,
    other: VisionLanguageModel,
    other_processor: VisionLanguageProcessor,
) -> None:
    own, theirs = ({name: tuple(weight.shape) for name, weight in each.state_dict().items()} for each in (model, other))
    for name in [*own, *theirs]:
        if own.get(name) != theirs.get(name):
            raise ConfigurationError(
                f"{first} and {source} do not fit: {name} is {own.get(name, 'missing')} in the one and {theirs.get(name, 'missing')} "
                "in the other; merge models that were trained from the same one"
            )
    if processor.tokenizer.get_vocab() != other_processor.tokenizer.get_vocab():
        raise ConfigurationError(f"{first} and {source} have other words in their vocabularies; merge models trained from the same one")
