"""MoE-LLaVA's `config.json` to ours: which backbone, which vision tower, which projector, which experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from transformers import PreTrainedConfig

from salticid.errors import CheckpointError
from salticid.models import VisionLanguageConfig
from salticid.models.moe import ExpertsConfig

Values = Mapping[str, Any]

# Upstream's model types: the dense ones of stages 1 and 2, and with "moe_" in front those of stage 3.
BACKBONES: dict[str, str] = {"llava_phi": "phi", "llava_stablelm": "stablelm", "llava_qwen": "qwen", "llava_mistral": "mistral"}
# The conversation template that upstream's scripts train each with (`--version`); Mistral is OpenChat-3.5's.
TEMPLATES: dict[str, str] = {"phi": "moe_llava", "stablelm": "moe_llava", "qwen": "moe_llava", "mistral": "moe_llava_openchat"}

# Towers that the published checkpoints name, by the last part of the name; any other is described by its own folder.
PUBLISHED_TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
# Of the language model's configuration, what both sides call alike.
SAME_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "tie_word_embeddings")
PHI_NAMES = ("hidden_act", "layer_norm_eps", "resid_pdrop", "embd_pdrop", "attention_dropout", "qk_layernorm", "max_position_embeddings")
# A whole CLIP or SigLIP holds its vision half under `vision_config`.
VISION_HALVES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def backbone_of(values: Values) -> str:
    """Which language model a `config.json` describes: "phi", "stablelm", "qwen" or "mistral".

    Raises:
        CheckpointError: of another family.
    """
    found = str(values.get("model_type"))
    kind = found.removeprefix("moe_")
    if kind not in BACKBONES:
        known = ", ".join(f"{name} and moe_{name}" for name in BACKBONES)
        raise CheckpointError(
            f"this checkpoint's model_type is {found!r}, which is none of MoE-LLaVA's ({known}); convert it with its own command"
        )
    return BACKBONES[kind]


def text_config(values: Values) -> dict[str, Any]:
    """The language model's configuration, with transformers' names. `values` is upstream's `config.json`."""
    backbone = backbone_of(values)
    try:
        text = TEXT_CONFIGS[backbone](values)
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error} of a {backbone} language model; copy the whole checkpoint") from error
    for name in SAME_NAMES:
        if values.get(name) is not None:
            text[name] = values[name]
    return text


def _sizes(values: Values) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    heads = values.get("num_key_value_heads") or values["num_attention_heads"]
    return {name: values[name] for name in names} | {"num_key_value_heads": heads}


def _rope(theta: float, partial: float | None = None) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": float(theta)}
    return rope if partial is None else {**rope, "partial_rotary_factor": partial}


def _phi(values: Values) -> dict[str, Any]:
    return {
        "model_type": "phi",
        **_sizes(values),
        **{name: values[name] for name in PHI_NAMES if name in values},
        "rope_parameters": _rope(values.get("rope_theta", 10000.0), values.get("partial_rotary_factor", 0.5)),
    }


def _stablelm(values: Values) -> dict[str, Any]:
    return {
        "model_type": "stablelm",
        **_sizes(values),
        "hidden_act": values.get("hidden_act", "silu"),
        "layer_norm_eps": values.get("norm_eps", 1e-5),  # StableLM "epoch" calls it norm_eps
        "use_qkv_bias": values.get("use_qkv_bias", True),  # and has biases unless told otherwise, where transformers has none
        "max_position_embeddings": values.get("max_position_embeddings", 4096),
        "rope_parameters": _rope(values.get("rope_theta", 10000), values.get("rope_pct", 0.25)),
    }


def _qwen(values: Values) -> dict[str, Any]:
    """The first Qwen as Qwen2.

    Beyond `seq_length` the first Qwen stretches its rotary base (dynamic NTK: alpha = 2^ceil(log2(n / seq_length) + 1) - 1) and
    scales the queries there by log n / log seq_length (logn attention). Up to `seq_length` both factors are 1. Qwen2 has neither, so
    the context is set to end where the two would begin to act.
    """
    if not values.get("no_bias", True) or values.get("rotary_pct", 1.0) != 1.0:
        raise CheckpointError("this Qwen has biases outside attention or a partial rotary embedding, which Qwen2 does not have")
    if values["kv_channels"] * values["num_attention_heads"] != values["hidden_size"]:
        raise CheckpointError(f"this Qwen's heads are {values['kv_channels']} wide, which is not its width divided by its heads")
    return {
        "model_type": "qwen2",
        **_sizes(values),
        "intermediate_size": values["intermediate_size"] // 2,  # upstream counts w1 and w2 together
        "hidden_act": "silu",
        "rms_norm_eps": values.get("layer_norm_epsilon", 1e-6),
        "max_position_embeddings": values["seq_length"],
        "use_sliding_window": False,
        "rope_parameters": _rope(values.get("rotary_emb_base", 10000)),
    }


def _mistral(values: Values) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        **_sizes(values),
        "hidden_act": values.get("hidden_act", "silu"),
        "rms_norm_eps": values.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": values.get("max_position_embeddings", 32768),
        "sliding_window": values.get("sliding_window"),
        "rope_parameters": _rope(values.get("rope_theta", 10000.0)),
    }


TEXT_CONFIGS: dict[str, Callable[[Values], dict[str, Any]]] = {"phi": _phi, "stablelm": _stablelm, "qwen": _qwen, "mistral": _mistral}


def experts_config(values: Values, routing: str = "deepspeed") -> ExpertsConfig | None:
    """The expert options of upstream's `moe` section; `None` for a dense checkpoint.

    With routing "deepspeed" the checkpoint does what upstream does, but for the random second choice, which stays off;
    `second_choice_noise="gumbel"` turns it on. With "dropless" no token loses its experts; as long as `eval_capacity_factor` times
    top_k is at least the number of experts, as in all published checkpoints, both answer alike.
    """
    moe = values.get("moe") or {}
    if not moe.get("moe_enable"):
        return None
    experts = moe["num_experts"]
    counts = list(experts) if isinstance(experts, list) else [experts]
    options: dict[str, Any] = {
        "experts": counts[0] if len(set(counts)) == 1 else tuple(counts),
        "top_k": moe["top_k_experts"],
        "layers": tuple(moe["moe_layers_idx"]),
        "routing": routing,
        "residual": moe.get("use_residual", False),
        "aux_loss_coef": moe["router_aux_loss_coef"],
    }
    if routing == "deepspeed":
        options |= {name: moe[name] for name in ("capacity_factor", "eval_capacity_factor", "min_capacity")}
    return ExpertsConfig.from_dict(options)


def connector_config(values: Values) -> dict[str, Any]:
    """Fields of `ConnectorConfig` for upstream's `image_projector_type`: "linear" or "mlpNx_gelu"."""
    kind = values.get("image_projector_type") or values.get("mm_projector_type") or "linear"
    if kind == "linear":
        return {"depth": 1, "activation": None}
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        return {"depth": int(match[1]), "activation": "gelu"}
    raise CheckpointError(f"the projector {kind!r} is not supported; known: linear, mlp2x_gelu and other depths of it")


def vision_config(values: Values, described: Values | None = None) -> dict[str, Any]:
    """The vision tower's configuration: from the `config.json` of its own folder, or that of the published tower of this name.

    Raises:
        CheckpointError: the tower is neither described nor published, or is no CLIP or SigLIP.
    """
    if described is not None:
        model_type = str(described.get("model_type"))
        half = described["vision_config"] if model_type in VISION_HALVES and "vision_config" in described else described
        found = VISION_HALVES.get(model_type, model_type)
        if found not in VISION_HALVES.values():
            raise CheckpointError(f"the vision folder holds a {model_type!r} model; give a CLIP or SigLIP")
        skipped = ("torch_dtype", "dtype", "transformers_version", "architectures", "_name_or_path", "model_type")
        return {"model_type": found, **{name: value for name, value in half.items() if name not in skipped}}
    name = str(values.get("mm_image_tower") or values.get("mm_vision_tower"))
    if PurePath(name).name not in PUBLISHED_TOWERS:
        raise CheckpointError(f"the vision tower {name!r} is not described in the checkpoint; give its folder with --vision")
    return dict(PUBLISHED_TOWERS[PurePath(name).name])


def vision_options(values: Values, tower: str) -> dict[str, Any]:
    """Which features of the tower are read, as fields of `VisionLanguageConfig`."""
    feature = values.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(f"unknown mm_vision_select_feature {feature!r}; known: patch, cls_patch")
    options: dict[str, Any] = {"vision_layers": [values.get("mm_vision_select_layer", -2)]}
    if tower == "siglip_vision_model":
        options["vision_drop_first"] = feature == "patch"  # upstream takes SigLIP's first patch for a class token
    else:
        options["vision_keep_cls"] = feature == "cls_patch"
    return options


# The inverses of `TEXT_CONFIGS`; sizes and token ids are added by `invert_moe_llava_config`.
UPSTREAM_TEXTS: dict[str, Callable[[PreTrainedConfig], dict[str, Any]]] = {
    "phi": lambda text: {
        **{name: getattr(text, name) for name in PHI_NAMES},
        "rope_theta": text.rope_parameters["rope_theta"],
        "partial_rotary_factor": text.rope_parameters["partial_rotary_factor"],
    },
    "stablelm": lambda text: {
        "hidden_act": text.hidden_act,
        "norm_eps": text.layer_norm_eps,
        "use_qkv_bias": text.use_qkv_bias,
        "max_position_embeddings": text.max_position_embeddings,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_pct": text.rope_parameters["partial_rotary_factor"],
    },
    "qwen": lambda text: {
        "intermediate_size": 2 * text.intermediate_size,
        "kv_channels": text.hidden_size // text.num_attention_heads,
        "layer_norm_epsilon": text.rms_norm_eps,
        "seq_length": text.max_position_embeddings,
        "rotary_emb_base": text.rope_parameters["rope_theta"],
        "no_bias": True,
        "rotary_pct": 1.0,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    },
    "mistral": lambda text: {
        "hidden_act": text.hidden_act,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "sliding_window": text.sliding_window,
        "rope_theta": text.rope_parameters["rope_theta"],
    },
}


def invert_moe_llava_config(config: VisionLanguageConfig) -> dict[str, Any]:
    """Upstream's `config.json` for a model of ours, as far as `convert_moe_llava` reads it.

    Raises:
        CheckpointError: upstream has no such backbone, connector, vision features or experts.
    """
    text, connector = config.text_config, config.connector_config
    backbone = {"qwen2": "qwen"}.get(text.model_type, text.model_type)
    plain = connector.kind == "mlp" and connector.pool == connector.shuffle == 1 and not connector.norm and connector.hidden_size is None
    layers = config.vision_layers or []
    if backbone not in UPSTREAM_TEXTS or not plain or len(layers) != 1:
        raise CheckpointError(
            f"MoE-LLaVA cannot hold this {text.model_type} model; it knows {', '.join(UPSTREAM_TEXTS)}, "
            "a plain MLP connector, and features of one vision layer"
        )
    kept = config.vision_keep_cls or (config.vision_config.model_type == "siglip_vision_model" and not config.vision_drop_first)
    tower = (name for name, values in PUBLISHED_TOWERS.items() if _describes(values, config.vision_config))
    values: dict[str, Any] = {
        "model_type": next(kind for kind, name in BACKBONES.items() if name == backbone),
        **_sizes(text.to_dict()),
        **UPSTREAM_TEXTS[backbone](text),
        **{name: getattr(text, name) for name in SAME_NAMES if getattr(text, name, None) is not None},
        "image_projector_type": "linear" if connector.activation is None else f"mlp{connector.depth}x_gelu",
        "mm_image_tower": next(tower, "unpublished"),
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_vision_select_layer": layers[0],
        "mm_vision_select_feature": "cls_patch" if kept else "patch",
    }
    if config.experts is not None:
        values |= {
            "model_type": f"moe_{values['model_type']}",
            "moe": _upstream_experts(ExpertsConfig.from_dict(config.experts), text.num_hidden_layers),
        }
    return values


def _upstream_experts(experts: ExpertsConfig, layers: int) -> dict[str, Any]:
    if experts.shared_expert or experts.top_k > 2:
        raise CheckpointError("MoE-LLaVA has no shared experts and at most two experts per token; this model cannot be written in its form")
    placement = experts.experts_per_layer(layers)
    same = ("capacity_factor", "eval_capacity_factor", "min_capacity")
    return {
        "moe_enable": True,
        "num_experts": list(placement.values()),
        "moe_layers_idx": list(placement),
        "top_k_experts": experts.top_k,
        "use_residual": experts.residual,
        "router_aux_loss_coef": experts.aux_loss_coef,
        "ep_size": 1,
        **{name: getattr(experts, name) for name in same},
    }


def _describes(tower: Values, config: PreTrainedConfig) -> bool:
    return all(getattr(config, name, None) == value for name, value in tower.items())
