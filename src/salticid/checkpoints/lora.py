"""LoRA beside a model: adapters in a folder of their own, or merged into the weights.

A model folder may hold `lora/`, in PEFT's format; `attach_lora` puts such adapters on the model that the folder's weights make.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from salticid.checkpoints.weights import read_file
from salticid.errors import CheckpointError, MissingExtraError

LORA_FOLDER = "lora"
PEFT_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and LoRA factors, the latter named `<module>.lora_A.weight` (R, D) and `<module>.lora_B.weight` (D, R)."""
    factors = {name: tensor for name, tensor in tensors.items() if _FACTOR.fullmatch(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in factors}, factors


def merge_lora(weight: Tensor, factor_a: Tensor, factor_b: Tensor, alpha: float) -> Tensor:
    """W + alpha / rank * B A, summed in float32 and given back in the weight's precision (LoRA, arXiv 2106.09685, section 4.1)."""
    update = factor_b.float() @ factor_a.float() * (alpha / factor_a.shape[0])
    return (weight.float() + update).to(weight.dtype)


def write_lora(folder: Path, factors: Mapping[str, Tensor], alpha: float, dropout: float) -> None:
    """Write LoRA factors as a PEFT adapter into `folder/lora`.

    Raises:
        CheckpointError: a factor lacks its other half, or ranks differ.
    """
    modules = sorted({match["module"] for name in factors if (match := _FACTOR.fullmatch(name))})
    if missing := [name for module in modules for half in "AB" if (name := f"{module}.lora_{half}.weight") not in factors]:
        raise CheckpointError(f"the LoRA of the checkpoint is not whole: {missing[0]} is missing; download it again")
    ranks = {factors[f"{module}.lora_A.weight"].shape[0] for module in modules}
    if len(ranks) != 1:
        raise CheckpointError(f"the LoRA of the checkpoint has several ranks: {sorted(ranks)}; it must have one")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": modules,
        "inference_mode": True,
    }
    target = folder / LORA_FOLDER
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Cloned, for several modules may hold one and the same factor, which the file format does not allow.
    named = {PEFT_PREFIX + name: tensor.clone().contiguous() for name, tensor in factors.items()}
    save_file(named, target / "adapter_model.safetensors", metadata={"format": "pt"})


def read_lora(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The factors and the configuration of `folder/lora`; both empty where there is none."""
    source = folder / LORA_FOLDER
    if not (source / "adapter_config.json").is_file():
        return {}, {}
    factors = read_file(source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in factors.items()}, config


def attach_lora(model: PreTrainedModel, folder: Path, trainable: bool = False) -> bool:
    """Put the adapters of `folder/lora` on the model, in place; false when there are none.

    Projections of one layer whose first factors are equal share one from then on: they were one fused layer upstream, and train as one.

    Raises:
        MissingExtraError: PEFT is not installed.
        CheckpointError: the adapters do not fit the model.
    """
    factors, config = read_lora(Path(folder))
    if not factors:
        return False
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} keeps its LoRA beside the weights; pip install 'salticid[train]', or convert with --merge-lora"
        ) from error
    known = LoraConfig(**{name: value for name, value in config.items() if name != "peft_type"})
    try:
        report = cast(Any, model).load_adapter(peft_config=known, adapter_state_dict=dict(factors), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"the LoRA in {folder} does not fit the model: {str(error).splitlines()[0]}") from error
    problems = sorted(map(str, [*report.missing_keys, *report.unexpected_keys, *report.mismatched_keys]))
    if problems:
        raise CheckpointError(f"the LoRA in {folder} does not fit the model: {', '.join(problems[:3])}")
    _share_first_factors(model)
    return True


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save weights and configuration into `folder`, attached LoRA into `folder/lora`, so that `load_model` gives the same model again."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        model.save_pretrained(folder)
        return
    whole = {name.replace(".base_layer.", ".").replace(".default.weight", ".weight"): value for name, value in model.state_dict().items()}
    weights, factors = split_lora(whole)
    config = cast(Any, model).peft_config["default"]
    model._hf_peft_config_loaded = False  # transformers would save the adapters alone
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model._hf_peft_config_loaded = True
    write_lora(folder, factors, config.lora_alpha, config.lora_dropout)


def merge_attached_lora(model: PreTrainedModel) -> None:
    """Add attached LoRA to the weights, in place, and leave plain layers; nothing where there is none."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
        owner, _, attribute = name.rpartition(".")
        cast(Any, module).merge()
        setattr(model.get_submodule(owner), attribute, module.get_base_layer())
    cast(Any, model).peft_config = {}
    model._hf_peft_config_loaded = False


def _share_first_factors(model: nn.Module) -> None:
    for block in model.modules():
        factors = [cast(Any, child).lora_A for child in block.children() if hasattr(child, "lora_A")]
        for first, other in itertools.pairwise(factors):
            if _equal(first, other):
                for name, layer in first.items():
                    other[name] = layer


def _equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name].weight, other[name].weight) for name in one)
