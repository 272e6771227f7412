"""Sizes of published models, by name: for measuring speed and memory without their weights.

Sources: the configurations that DLYuanGod/TinyGPT-V (stage 4), PKU-YuanGroup/MoE-LLaVA and microsoft/phi-2 publish. The vocabulary has
room for the photo's placeholder, which gets the first id that the tokenizer leaves free.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from salticid.errors import ConfigurationError
from salticid.models.configuration import VisionLanguageConfig

Values = dict[str, Any]

CLIP_LARGE_336: Values = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
EVA_GIANT_448: Values = {
    "model_type": "blip_2_vision_model",
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
PHI_2: Values = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
STABLELM_2: Values = {
    "model_type": "stablelm",
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "use_qkv_bias": True,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "bos_token_id": 100257,
    "eos_token_id": 100257,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
QWEN: Values = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
    "use_sliding_window": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
SMOLLM2_18_LAYERS: Values = {
    "model_type": "llama",
    "vocab_size": 13739,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 18,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}

LLAVA: Values = {"vision_config": CLIP_LARGE_336, "vision_layers": [-2], "connector_config": {"depth": 2, "activation": "gelu"}}
FOUR_EXPERTS: Values = {
    "experts": 4,
    "top_k": 2,
    "layers": "alternate",
    "routing": "deepspeed",
    "capacity_factor": 1.5,
    "eval_capacity_factor": 2.0,
}

SHAPES: dict[str, Values] = {
    "phi-2": LLAVA | {"text_config": PHI_2, "image_token_id": 50295, "template": "moe_llava"},
    "tinygpt-v": {
        "vision_config": EVA_GIANT_448,
        "vision_keep_cls": True,
        "connector_config": {
            "kind": "qformer",
            "queries": 32,
            "depth": 2,
            "hidden_size": 4096,
            "activation": None,
            "qformer_config": {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "encoder_hidden_size": 1408,
                "cross_attention_frequency": 2,
            },
        },
        "text_config": PHI_2,
        "norms": {"query": True, "key": True, "attention_output": True},
        "image_token_id": 50295,
        "template": "tinygpt_v_tasks",
    },
    "moe-llava-phi2": LLAVA | {"text_config": PHI_2, "image_token_id": 50295, "experts": FOUR_EXPERTS, "template": "moe_llava"},
    "moe-llava-stablelm": LLAVA | {"text_config": STABLELM_2, "image_token_id": 100289, "experts": FOUR_EXPERTS, "template": "moe_llava"},
    "moe-llava-qwen": LLAVA | {"text_config": QWEN, "image_token_id": 151851, "experts": FOUR_EXPERTS, "template": "moe_llava"},
    "nano": {
        "vision_config": {"model_type": "efficientnet_lite", "variant": "lite2", "image_size": 320},
        "vision_layers": [4, -1],
        "connector_config": {"depth": 2, "hidden_size": 768, "norm": True, "shuffle": 2},
        "text_config": SMOLLM2_18_LAYERS,
        "image_token_id": 13738,
        "template": "nano",
    },
}


@dataclass(frozen=True)
class Shape:
    """A name in `SHAPES` with the values that `VisionLanguageConfig` is built from."""

    name: str
    values: Values

    @classmethod
    def named(cls, name: str) -> Shape:
        """Raises `ConfigurationError` for a name that is not in `SHAPES`."""
        if name not in SHAPES:
            raise ConfigurationError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
        return cls(name, deepcopy(SHAPES[name]))

    def with_layers(self, layers: int) -> Shape:
        """The same model with the first `layers` decoder layers alone; experts stay in those that had them.

        Raises:
            ConfigurationError: it has fewer layers than that, or `layers` is below one.
        """
        values = deepcopy(self.values)
        whole = values["text_config"]["num_hidden_layers"]
        if not 1 <= layers <= whole:
            raise ConfigurationError(f"{self.name} has {whole} decoder layers; keep between 1 and {whole} of them, not {layers}")
        values["text_config"]["num_hidden_layers"] = layers
        return Shape(self.name, values)

    def config(self) -> VisionLanguageConfig:
        """A new configuration, checked."""
        return VisionLanguageConfig(**deepcopy(self.values))
