"""Vision tower and connector as llama.cpp's multimodal projector file ("mmproj"), projector type `mlp`.

What that type computes (llama.cpp's `tools/mtmd/clip.cpp`, `models/llava.cpp`): a ViT of CLIP's kind, with or without class token, the
hidden states that `feature_layer` names side by side, without the class token, then linear, GELU, linear. Photos are scaled to fit the
square, padded with CLIP's mean colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salticid.checkpoints.export.gguf_language import FileType, write_tensors
from salticid.errors import InputError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor

# transformers' name -> the key that tells llama.cpp; None: what it computes when no key is there.
ACTIVATIONS: dict[str, str | None] = {
    "quick_gelu": None,
    "gelu": "clip.use_gelu",  # by its tanh formula
    "gelu_new": "clip.use_gelu",
    "gelu_pytorch_tanh": "clip.use_gelu",
    "silu": "clip.use_silu",
}
CONNECTOR_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
TOWERS = ("clip_vision_model", "siglip_vision_model")

# Part of our names -> part of llama.cpp's, in every block; whole names outside them.
BLOCK = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
OUTSIDE = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
POST_NORM = {"post_layernorm.weight": "v.post_ln.weight", "post_layernorm.bias": "v.post_ln.bias"}
PAD_COLOUR = (122, 116, 104)
# Where llama.cpp puts CLIP's class token: first, as CLIP itself, until May 2025; since then last, while it still passes over the first
# token and not the last one (its issue 25814).
CLASS_TOKENS = ("last", "first")


def check_projector(model: VisionLanguageModel) -> None:
    """Raises `InputError` for a tower or a connector that llama.cpp's projector type `mlp` cannot hold; the line says what else to do."""
    config = model.config
    vision, connector = config.vision_config, config.connector_config
    if vision.model_type not in TOWERS:
        _refuse(f"has no {vision.model_type} tower (it has CLIP's and SigLIP's)")
    if connector.kind != "mlp":
        _refuse("has no Q-Former of BLIP-2")
    if connector.pool > 1 or connector.shuffle > 1 or connector.norm:
        _refuse("does not pool, shuffle or normalise in front of linear layers")
    if connector.depth > 2 or (connector.depth == 2 and connector.activation not in CONNECTOR_ACTIVATIONS):
        _refuse("computes linear, or linear-GELU-linear, and no other connector")
    if config.vision_keep_cls or config.vision_drop_first:
        _refuse("drops the class token and nothing else of a tower's output")
    if vision.hidden_act not in ACTIVATIONS:
        _refuse(f"knows {', '.join(ACTIVATIONS)} in towers, not {vision.hidden_act}")
    if vision.intermediate_size == vision.hidden_size:
        _refuse("takes a feed-forward network as wide as the tower for one of swapped matrices")
    layers = read_layers(model)
    if layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] == 0:
        _refuse(f"reads layers of the tower in ascending order, not {config.vision_layers}")


def projector_notes(model: VisionLanguageModel, processor: VisionLanguageProcessor, class_token: str) -> list[str]:
    """Where llama.cpp sees something else than Salticid."""
    notes = []
    if model.config.vision_config.model_type == "clip_vision_model":
        notes.append(
            "llama.cpp since May 2025 drops a photo's first patch in place of CLIP's class token (its issue 25814); "
            f"the file is for versions with the class token {class_token}, see --class-token"
        )
    transform = processor.image_processor.transform
    if transform.mode != "pad" or transform.background_colour != PAD_COLOUR:
        notes.append(f"llama.cpp pads photos to a square in CLIP's mean colour, this model was trained with {transform.mode!r}")
    if transform.resample != "bicubic":
        notes.append(f"llama.cpp scales photos by bicubic interpolation, this model was trained with {transform.resample}")
    return notes


def read_layers(model: VisionLanguageModel) -> list[int]:
    """Hidden states that are read, counted from the input of the first block."""
    count = model.config.vision_config.num_hidden_layers
    return [layer if layer >= 0 else count + 1 + layer for layer in model.config.vision_layers or [count]]


def write_projector(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    file_type: FileType,
    file: Path,
    name: str = "model",
    class_token: str = "last",
) -> Path:
    """Write the projector file; matrices are F32 where `file_type` says so, F16 otherwise, as llama.cpp's own converter has them.

    Args:
        class_token: one of `CLASS_TOKENS`, where llama.cpp's version puts CLIP's.

    Raises:
        InputError: see `check_projector`.
    """
    import gguf

    check_projector(model)
    kind = "F32" if file_type.layers == "F32" else "F16"
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType.MOSTLY_F16)
    _write_sizes(writer, model, processor)
    tensors = [*_tower_tensors(model, class_token), *_connector_tensors(model)]
    # Positions are added and the class token is joined to activations, which are F32.
    write_tensors(writer, tensors, lambda target: "F32" if target == "v.position_embd.weight" else kind)
    return file


def _refuse(what: str) -> None:
    raise InputError(f"llama.cpp {what}; export to openvino, or the words alone with --part language")


def _write_sizes(writer: Any, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> None:
    vision, layers = model.config.vision_config, read_layers(model)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_block_count(layers[-1])
    writer.add_array("clip.vision.feature_layer", layers)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(model.config.text_config.hidden_size)
    writer.add_vision_image_mean(list(processor.image_processor.mean))
    writer.add_vision_image_std(list(processor.image_processor.std))
    if key := ACTIVATIONS[vision.hidden_act]:
        writer.add_bool(key, True)


def _tower_tensors(model: VisionLanguageModel, class_token: str) -> Iterator[tuple[str, Tensor]]:
    """The tower as far as it is read."""
    vision = model.config.vision_config
    # SigLIP's own output is normalised once more; a hidden state is not.
    outside = OUTSIDE | (POST_NORM if vision.model_type == "siglip_vision_model" and model.config.vision_layers is None else {})
    deepest = read_layers(model)[-1]
    for name, tensor in model.vision_tower.model.state_dict().items():
        name = name.removeprefix("vision_model.")
        if name == "embeddings.position_embedding.weight" and vision.model_type == "clip_vision_model" and class_token == "last":
            tensor = tensor.roll(-1, 0)
        if name in outside:
            yield outside[name], tensor
        elif name.startswith("encoder.layers."):
            _, _, block, rest = name.split(".", 3)
            part, leaf = rest.rsplit(".", 1)
            if int(block) < deepest:
                yield f"v.blk.{block}.{BLOCK[part]}.{leaf}", tensor


def _connector_tensors(model: VisionLanguageModel) -> Iterator[tuple[str, Tensor]]:
    layers: Any = model.connector.layers
    first, last = layers[0], layers[-1]
    weight, bias = last.weight, last.bias
    if model.config.text_config.model_type.startswith("gemma"):
        # llama.cpp scales image tokens as it scales words, transformers words alone.
        scale = model.config.text_config.hidden_size**-0.5
        weight, bias = weight * scale, bias * scale
    if len(layers) > 1:
        yield from (("mm.0.weight", first.weight), ("mm.0.bias", first.bias), ("mm.2.weight", weight), ("mm.2.bias", bias))
        return
    # There is always a GELU. A linear layer is one too: gelu(x) - gelu(-x) = x.
    identity = torch.eye(len(bias))
    yield from (("mm.0.weight", torch.cat([weight, -weight])), ("mm.0.bias", torch.cat([bias, -bias])))
    yield from (("mm.2.weight", torch.cat([identity, -identity], dim=1)), ("mm.2.bias", torch.zeros(len(bias))))
