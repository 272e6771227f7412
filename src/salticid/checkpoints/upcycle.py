"""A dense model folder to a sparse one: the feed-forward networks of chosen layers are copied into experts."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from salticid.checkpoints.load import load_config, load_unpacked
from salticid.checkpoints.save import new_folder
from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageConfig
from salticid.models.moe import ExpertsConfig, upcycle_language_model

WEIGHTS = (".safetensors", ".bin", ".index.json")


def upcycle_folder(
    source: Path, out: Path, experts: ExpertsConfig, *, reinitialise: float = 0.0, noise: float = 0.0, seed: int = 0
) -> VisionLanguageConfig:
    """Give a dense model experts; until they are trained it answers as before, bit for bit where the arithmetic allows.

    Args:
        source: folder of a dense model, with any language model that Salticid knows. Small weights are unpacked, where `salticid.quant`
            was imported.
        out: the new folder; it appears whole or not at all.
        experts: which layers, how many, which routing.
        reinitialise, noise: make the experts differ, see `upcycle_language_model`; the answers then change.
        seed: of the new routers and of both options.

    Raises:
        ConfigurationError: the model has experts already, or fewer layers than asked for.
        ModelNotFoundError, CheckpointError: there is no such model, or `out` exists.
    """
    config = load_config(Path(source))
    if config.experts is not None:
        raise ConfigurationError(f"{source} has experts already; start from the dense model, or go on training this one")
    experts.experts_per_layer(config.text_config.num_hidden_layers)  # before reading gigabytes
    with new_folder(out) as folder:
        model = load_unpacked(Path(source), config.dtype or torch.float32)
        generator = torch.Generator().manual_seed(seed)
        upcycle_language_model(
            model.language_model, experts, host_config=model.config, reinitialise=reinitialise, noise=noise, generator=generator
        )
        model.experts, model.config.experts = experts, experts.to_dict()
        for file in Path(source).iterdir():  # tokenizer, image processing, generation options
            if file.is_file() and not file.name.endswith(WEIGHTS):
                shutil.copy(file, folder)
        model.save_pretrained(folder)
    return model.config
