"""MoE-LLaVA's checkpoints (arXiv 2401.15947): stages 1 to 3, with Phi, StableLM, the first Qwen, and Mistral.

Source of the names: the modules of `moellava/model` and DeepSpeed 0.9.5's `deepspeed/moe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salticid.checkpoints.key_table import Drop, KeyTable, Source, Target, build, listed
from salticid.checkpoints.moe_llava_config import (
    TEMPLATES,
    backbone_of,
    connector_config,
    experts_config,
    text_config,
    vision_config,
    vision_options,
)
from salticid.errors import CheckpointError
from salticid.models import VisionLanguageConfig, VisionLanguageModel

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
PHI_HEAD_BIAS = "language_model.lm_head.bias"  # transformers' Phi has one, upstream's has not
VOCABULARY = (EMBEDDING, HEAD, PHI_HEAD_BIAS)

RECOMPUTED = Drop("a buffer that is recomputed when the model is built")
NO_VIDEO = Drop("video is not supported")

_MOE = "mlp.deepspeed_moe.experts.deepspeed_experts.{E}"


def _around(body: str) -> dict[str, Target]:
    """What hangs on the language model's body, called "model", or "transformer" in Qwen: the tower and the projector."""
    return {
        f"{body}.image_tower.image_tower.vision_model.embeddings.position_ids": RECOMPUTED,
        f"{body}.image_tower.image_tower.vision_model.{{rest}}": "vision_tower.model.{rest}",
        f"{body}.mm_projector.image_spatial_proj.{{N}}.{{kind}}": "connector.layers.{N}.{kind}",
        f"{body}.mm_projector.video_{{rest}}": NO_VIDEO,
        f"{body}.video_tower.{{rest}}": NO_VIDEO,
    }


def _ours(names: Mapping[str, Target], upstream: str = "model.layers.{L}.") -> dict[str, Target]:
    """Decoder layers: each side gets its prefix."""
    prefix = "language_model.model.layers.{L}."

    def placed(target: Target) -> Target:
        if isinstance(target, Drop):
            return target
        return prefix + target if isinstance(target, str) else tuple(prefix + part for part in target)

    return {upstream + name: placed(target) for name, target in names.items()}


_ROUTER: dict[str, Target] = {
    "mlp.deepspeed_moe.gate.wg.weight": "mlp.router.wg.weight",
    "mlp.coefficient.{kind}": "mlp.coefficient.{kind}",  # of residual experts, as is mlp.mlp below
}
_LLAMA_FFN: dict[str, Target] = {
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
    "mlp.mlp.gate_proj.weight": "mlp.residual_mlp.gate_proj.weight",
    "mlp.mlp.up_proj.weight": "mlp.residual_mlp.up_proj.weight",
    "mlp.mlp.down_proj.weight": "mlp.residual_mlp.down_proj.weight",
    f"{_MOE}.gate_proj.weight": "mlp.experts.gate_up_proj[{E}, 0/2]",
    f"{_MOE}.up_proj.weight": "mlp.experts.gate_up_proj[{E}, 1/2]",
    f"{_MOE}.down_proj.weight": "mlp.experts.down_proj[{E}]",
    **_ROUTER,
}
_LLAMA_ATTENTION: dict[str, Target] = {
    "self_attn.q_proj.{kind}": "self_attn.q_proj.{kind}",
    "self_attn.k_proj.{kind}": "self_attn.k_proj.{kind}",
    "self_attn.v_proj.{kind}": "self_attn.v_proj.{kind}",
    "self_attn.o_proj.weight": "self_attn.o_proj.weight",
    "self_attn.rotary_emb.inv_freq": RECOMPUTED,
    "input_layernorm.{kind}": "input_layernorm.{kind}",
    "post_attention_layernorm.{kind}": "post_attention_layernorm.{kind}",
}
_LLAMA_ENDS: dict[str, Target] = {
    "model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "model.norm.{kind}": "language_model.model.norm.{kind}",
    "lm_head.weight": "language_model.lm_head.weight",
}
_PHI_LAYER: dict[str, Target] = {
    "self_attn.q_proj.{kind}": "self_attn.q_proj.{kind}",
    "self_attn.k_proj.{kind}": "self_attn.k_proj.{kind}",
    "self_attn.v_proj.{kind}": "self_attn.v_proj.{kind}",
    "self_attn.dense.{kind}": "self_attn.dense.{kind}",
    "self_attn.q_layernorm.{kind}": "self_attn.q_layernorm.{kind}",
    "self_attn.k_layernorm.{kind}": "self_attn.k_layernorm.{kind}",
    "self_attn.rotary_emb.inv_freq": RECOMPUTED,
    "input_layernorm.{kind}": "input_layernorm.{kind}",
    "mlp.fc1.{kind}": "mlp.fc1.{kind}",
    "mlp.fc2.{kind}": "mlp.fc2.{kind}",
    "mlp.mlp.fc1.{kind}": "mlp.residual_mlp.fc1.{kind}",
    "mlp.mlp.fc2.{kind}": "mlp.residual_mlp.fc2.{kind}",
    f"{_MOE}.fc1.weight": "mlp.experts.up_proj[{E}]",
    f"{_MOE}.fc1.bias": "mlp.experts.up_proj_bias[{E}]",
    f"{_MOE}.fc2.weight": "mlp.experts.down_proj[{E}]",
    f"{_MOE}.fc2.bias": "mlp.experts.down_proj_bias[{E}]",
    **_ROUTER,
}
# Qwen's feed-forward network is c_proj(w1(x) * silu(w2(x))): the gate is w2.
_QWEN_LAYER: dict[str, Target] = {
    "attn.c_attn.{kind}": ("self_attn.q_proj.{kind}", "self_attn.k_proj.{kind}", "self_attn.v_proj.{kind}"),
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "attn.rotary_emb.inv_freq": RECOMPUTED,
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
    "mlp.mlp.w2.weight": "mlp.residual_mlp.gate_proj.weight",
    "mlp.mlp.w1.weight": "mlp.residual_mlp.up_proj.weight",
    "mlp.mlp.c_proj.weight": "mlp.residual_mlp.down_proj.weight",
    f"{_MOE}.w2.weight": "mlp.experts.gate_up_proj[{E}, 0/2]",
    f"{_MOE}.w1.weight": "mlp.experts.gate_up_proj[{E}, 1/2]",
    f"{_MOE}.c_proj.weight": "mlp.experts.down_proj[{E}]",
    **_ROUTER,
}

# Every tensor of a checkpoint, by backbone.
MOE_LLAVA_KEYS: dict[str, dict[str, Target]] = {
    "phi": {
        "model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        **_ours(_PHI_LAYER),
        "model.final_layernorm.{kind}": "language_model.model.final_layernorm.{kind}",
        "lm_head.{kind}": "language_model.lm_head.{kind}",
        **_around("model"),
    },
    "stablelm": {**_LLAMA_ENDS, **_ours(_LLAMA_ATTENTION), **_ours(_LLAMA_FFN), **_around("model")},
    "mistral": {**_LLAMA_ENDS, **_ours(_LLAMA_ATTENTION), **_ours(_LLAMA_FFN), **_around("model")},
    "qwen": {
        "transformer.wte.weight": "language_model.model.embed_tokens.weight",
        **_ours(_QWEN_LAYER, "transformer.h.{L}."),
        "transformer.rotary_emb.inv_freq": RECOMPUTED,
        "transformer.ln_f.weight": "language_model.model.norm.weight",
        "lm_head.weight": "language_model.lm_head.weight",
        **_around("transformer"),
    },
}
# LLaVA's own names of the projector; MoE-LLaVA's early checkpoints have them.
_PROJECTOR_ALIASES: dict[str, Target] = {
    "mm_projector.{N}.{kind}": "connector.layers.{N}.{kind}",
    "mm_projector.{kind}": "connector.layers.0.{kind}",
}
# A vision folder holds the tower alone, or a whole CLIP or SigLIP.
VISION_KEYS: dict[str, Target] = {
    "vision_model.embeddings.position_ids": RECOMPUTED,
    "vision_model.{rest}": "vision_tower.model.{rest}",
    "text_model.{rest}": Drop("the text half of CLIP or SigLIP"),
    "text_projection.{rest}": Drop("the text half of CLIP"),
    "visual_projection.{rest}": Drop("projects into the space that is shared with the text half"),
    "logit_scale": Drop("of the contrastive loss"),
    "logit_bias": Drop("of the contrastive loss"),
}


def key_table(backbone: str, linear: bool = False) -> KeyTable:
    """The table of a backbone; `linear` for the projector that is one linear layer and thus has no number in its name."""
    body = "transformer" if backbone == "qwen" else "model"
    rules = dict(MOE_LLAVA_KEYS[backbone])
    if linear:
        del rules[f"{body}.mm_projector.image_spatial_proj.{{N}}.{{kind}}"]
        rules[f"{body}.mm_projector.image_spatial_proj.{{kind}}"] = "connector.layers.0.{kind}"
    return KeyTable(rules, {f"{body}.{name}": target for name, target in _PROJECTOR_ALIASES.items()})


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint whose tensors are made when they are read: `config`, and what each of our tensors is made of."""

    config: VisionLanguageConfig
    plan: dict[str, list[Source]]
    upstream: Mapping[str, Tensor]
    shapes: dict[str, Tensor]  # of the finished model, in the checkpoint's dtypes, on the meta device

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our tensors by name, one after another, in the order of `shapes`.

        Raises:
            CheckpointError: a tensor has another shape than the model's.
        """
        for name, like in self.shapes.items():
            if name not in self.plan:  # the bias of Phi's output head
                yield name, torch.zeros(like.shape, dtype=like.dtype)
                continue
            tensor = build(name, self.plan[name], self.upstream)
            if name in VOCABULARY and tensor.shape[0] < like.shape[0]:
                tensor = _more_rows(tensor, like.shape[0])
            if tensor.shape != like.shape:
                raise CheckpointError(f"{name} has the shape {tuple(tensor.shape)}, but config.json makes it {tuple(like.shape)}")
            yield name, tensor


def _more_rows(tensor: Tensor, rows: int) -> Tensor:
    """New tokens start as the mean of all, so that they stand out in nothing."""
    new = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, new.expand(rows - tensor.shape[0], *tensor.shape[1:])])


def convert_moe_llava(
    values: Mapping[str, Any],
    upstream: Mapping[str, Tensor],
    image_token_id: int,
    *,
    tower: Mapping[str, Any] | None = None,
    tower_weights: Mapping[str, Tensor] | None = None,
    routing: str = "deepspeed",
) -> Conversion:
    """Upstream's tensors as ours; also on the meta device, for shapes alone.

    Args:
        values: upstream's `config.json`.
        upstream: its tensors by name.
        image_token_id: of the placeholder. Beyond the vocabulary, rows are added up to it.
        tower: `config.json` of the vision tower; needed unless it is a published one.
        tower_weights: its tensors. They replace those of the checkpoint: upstream, too, always reads the tower from its own folder.
        routing: "deepspeed" to reproduce upstream, "dropless" to let no expert turn a token away (see `experts_config`).

    Raises:
        CheckpointError: another family, an unknown part, tensors that no rule knows, that are missing, or of another shape.
    """
    backbone = backbone_of(values)
    connector = connector_config(values)
    plan = key_table(backbone, linear=connector["depth"] == 1 and connector["activation"] is None).plan(dict(upstream))
    if tower_weights is not None:
        plan = {name: sources for name, sources in plan.items() if not name.startswith("vision_tower.")}
        plan |= KeyTable(VISION_KEYS).plan(dict(tower_weights))
        upstream = {**upstream, **tower_weights}
    config = _config(values, tower, plan, upstream, image_token_id, routing)
    with torch.device("meta"):
        shapes = VisionLanguageModel(config).state_dict()
    missing = [name for name in shapes if name not in plan and name != PHI_HEAD_BIAS]
    if missing:
        raise CheckpointError(_what_is_missing(missing))
    if extra := [plan[name][0].key for name in plan if name not in shapes]:
        raise CheckpointError(f"config.json leaves no place for {listed(extra)}; weights and config.json are of different models")
    dtypes = {name: upstream[plan.get(name, plan[HEAD])[0].key].dtype for name in shapes}
    return Conversion(config, plan, upstream, {name: like.to(dtypes[name]) for name, like in shapes.items()})


def _config(
    values: Mapping[str, Any],
    tower: Mapping[str, Any] | None,
    plan: Mapping[str, list[Source]],
    upstream: Mapping[str, Tensor],
    image_token_id: int,
    routing: str,
) -> VisionLanguageConfig:
    text, vision, experts = text_config(values), vision_config(values, tower), experts_config(values, routing)
    if embedding := plan.get(EMBEDDING):
        text["vocab_size"] = max(upstream[embedding[0].key].shape[0], image_token_id + 1)
    return VisionLanguageConfig(
        vision_config=vision,
        text_config=text,
        connector_config=connector_config(values),
        image_token_id=image_token_id,
        template=TEMPLATES[backbone_of(values)],
        experts=None if experts is None else experts.to_dict(),
        **vision_options(values, vision["model_type"]),
    )


REMEDIES = {
    "vision_tower.": "the vision tower is missing or incomplete; give its folder with --vision",
    "connector.": "the projector is missing; this is a language model alone, train stage 1 first",
    "language_model.": "the language model is missing or incomplete; for a stage-1 checkpoint give its folder with --language",
}


def _what_is_missing(missing: list[str]) -> str:
    for prefix, remedy in REMEDIES.items():
        if found := [name for name in missing if name.startswith(prefix)]:
            return f"{remedy} (no {listed(found, 3)})"
    return f"the checkpoint lacks {listed(missing)}"


def invert_moe_llava(
    backbone: str, tensors: Mapping[str, Tensor], *, linear: bool = False, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """Our tensors under upstream's names: the inverse of `convert_moe_llava`.

    Args:
        backbone: "phi", "stablelm", "qwen" or "mistral".
        tensors: of a `VisionLanguageModel`.
        linear: the projector is one linear layer.
        vocabulary: rows of the word embeddings to keep; all by default.

    Raises:
        CheckpointError: the model has parts that upstream cannot hold.
    """
    kept = dict(tensors)
    bias = kept.pop(PHI_HEAD_BIAS, None)
    if bias is not None and bias.any():
        raise CheckpointError("the output head has a bias, which MoE-LLaVA's has not; the model cannot be written in its format")
    for name in (EMBEDDING, HEAD):
        kept[name] = kept[name][:vocabulary]
    return key_table(backbone, linear).invert(kept)
