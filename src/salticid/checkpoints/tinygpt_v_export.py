"""A model folder back to one of TinyGPT-V's checkpoints, which upstream loads as its `ckpt`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from salticid.checkpoints.load import load_config
from salticid.checkpoints.lora import read_lora
from salticid.checkpoints.tinygpt_v import NEVER
from salticid.checkpoints.tinygpt_v_files import FUSED, regroup_heads, split_vision_biases
from salticid.checkpoints.tinygpt_v_keys import key_tables
from salticid.checkpoints.weights import read_weights
from salticid.errors import CheckpointError

POSITION_IDS = "Qformer.bert.embeddings.position_ids"  # a buffer that upstream saves
PEFT_OWNER = "llama_model.base_model.model."


def export_tinygpt_v(folder: Path, out: Path) -> dict[str, Tensor]:
    """Write all weights of a converted model under upstream's names, bit for bit, and return them.

    Args:
        folder: a model folder from `convert_tinygpt_v`, or one trained from it. Its LoRA is kept as LoRA; merged weights are written for
            upstream's `lora_r: 0`.
        out: a new `.safetensors` file, or any other for torch's format with the weights under "model".

    Raises:
        CheckpointError: `out` exists or cannot be written; the model is no TinyGPT-V, or has learned what upstream cannot hold.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already; name a new file, or delete it first")
    config = load_config(folder)
    text, vision, connector = config.text_config, config.vision_config, config.connector_config
    if (text.model_type, vision.model_type, connector.kind) != ("phi", "blip_2_vision_model", "qformer"):
        raise CheckpointError(f"{folder} is {vision.model_type} + {connector.kind} + {text.model_type}, no TinyGPT-V; it cannot become one")
    factors, _ = read_lora(folder)
    weights = read_weights(folder)
    rows = _upstream_rows(weights)
    tensors = {name: _cut(name, tensor, rows) for name, tensor in weights.items()}
    named = key_tables(vision.num_hidden_layers)["checkpoint"].invert({**tensors, **_one_first_factor(factors)})
    fused = {
        name: regroup_heads(tensor, text.num_attention_heads, back=True) if FUSED.fullmatch(name) else tensor
        for name, tensor in named.items()
    }
    owner = PEFT_OWNER if factors else "llama_model."
    upstream = {name.replace("llama_model.", owner, 1): tensor.contiguous() for name, tensor in split_vision_biases(fused).items()}
    upstream[POSITION_IDS] = torch.arange(connector.qformer_config.max_position_embeddings).unsqueeze(0)
    _write(upstream, out)
    return upstream


def _upstream_rows(tensors: Mapping[str, Tensor]) -> int:
    """Rows of the vocabulary without those that conversion had to add, which are never written."""
    return int((tensors["language_model.lm_head.bias"] > NEVER / 2).sum())


def _cut(name: str, tensor: Tensor, rows: int) -> Tensor:
    """Without the row of the photo's placeholder, where conversion had to add one."""
    return tensor[:rows] if name.startswith(("language_model.model.embed_tokens.", "language_model.lm_head.")) else tensor


def _one_first_factor(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's fused layer has one first factor, ours the same for queries, keys and values."""
    kept = dict(factors)
    for name in [name for name in factors if name.endswith(".q_proj.lora_A.weight")]:
        for other in (name.replace("q_proj", "k_proj"), name.replace("q_proj", "v_proj")):
            if other not in kept or not torch.equal(kept.pop(other), factors[name]):
                raise CheckpointError(f"{other} differs from q_proj's, and upstream has one for both; merge the LoRA before exporting")
    return kept


def _write(tensors: dict[str, Tensor], out: Path) -> None:
    """The file appears whole, by one rename."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}; name a file in a folder that you may write to") from error
    os.close(handle)
    partial = Path(name)
    try:
        if out.suffix == ".safetensors":
            save_file(tensors, partial, metadata={"format": "pt"})
        else:
            torch.save({"model": tensors}, partial)
        partial.chmod(0o644)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
