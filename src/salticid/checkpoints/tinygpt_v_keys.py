"""Which tensor of TinyGPT-V's files is which of ours. Upstream's full names stand on the left, as its `MiniGPT4` holds them.

The four files keep part of each name; `PREFIXES` says what `convert` puts before them:
`eva_vit_g.pth` the vision tower, BLIP-2's `.pth` the Q-Former, the Phi-2 folder the language model, a stage's checkpoint everything it
trained. PEFT has written LoRA in two styles; `PEFT_STYLES` brings both to one.
"""

from __future__ import annotations

from collections.abc import Mapping

from salticid.checkpoints.key_table import Drop, KeyTable, Target

PREFIXES = {"vision": "visual_encoder.", "qformer": "", "language": "llama_model.", "checkpoint": ""}

# Substitutions in turn. The first two are peft 0.3 and later; the last is there whenever the model has LoRA.
PEFT_STYLES: Mapping[str, str] = {
    ".base_layer.": ".",
    ".default.weight": ".weight",
    "llama_model.base_model.model.": "llama_model.",
}

_BLOCK, _LAYER = "visual_encoder.blocks.{L}.", "vision_tower.model.encoder.layers.{L}."


def vision_rules(layers: int) -> dict[str, Target]:
    """EVA ViT-g/14 of BLIP-2, `layers` blocks deep. Before this table, `q_bias` and `v_bias` have become `qkv.bias`, zero for keys."""
    return {
        f"visual_encoder.blocks.{layers}.{{rest}}": Drop("BLIP-2 reads the output of the last block but one"),
        "visual_encoder.norm.{kind}": Drop("BLIP-2 has ln_vision in its place"),
        "visual_encoder.fc_norm.{kind}": Drop("EVA's classifier"),
        "visual_encoder.head.{kind}": Drop("EVA's classifier"),
        "visual_encoder.cls_token": "vision_tower.model.embeddings.class_embedding",
        "visual_encoder.pos_embed": "vision_tower.model.embeddings.position_embedding",
        "visual_encoder.patch_embed.proj.{kind}": "vision_tower.model.embeddings.patch_embedding.{kind}",
        _BLOCK + "norm1.{kind}": _LAYER + "layer_norm1.{kind}",
        _BLOCK + "attn.qkv.{kind}": _LAYER + "self_attn.qkv.{kind}",
        _BLOCK + "attn.proj.{kind}": _LAYER + "self_attn.projection.{kind}",
        _BLOCK + "norm2.{kind}": _LAYER + "layer_norm2.{kind}",
        _BLOCK + "mlp.fc1.{kind}": _LAYER + "mlp.fc1.{kind}",
        _BLOCK + "mlp.fc2.{kind}": _LAYER + "mlp.fc2.{kind}",
    }


_BERT, _QFORMER = "Qformer.bert.encoder.layer.{L}.", "connector.qformer.encoder.layer.{L}."
_ATTENTIONS = {
    f"{_BERT}{attention}.{upstream}.{{kind}}": f"{_QFORMER}{attention}.{ours}.{{kind}}"
    for attention in ("attention", "crossattention")
    for upstream, ours in {
        "self.query": "attention.query",
        "self.key": "attention.key",
        "self.value": "attention.value",
        "output.dense": "output.dense",
        "output.LayerNorm": "output.LayerNorm",
    }.items()
}

QFORMER_RULES: dict[str, Target] = {
    "query_tokens": "connector.query_tokens",
    "ln_vision.{kind}": "vision_tower.model.post_layernorm.{kind}",
    "Qformer.bert.embeddings.LayerNorm.{kind}": "connector.qformer.layernorm.{kind}",
    **_ATTENTIONS,
    _BERT + "intermediate_query.dense.{kind}": _QFORMER + "intermediate_query.dense.{kind}",
    _BERT + "output_query.dense.{kind}": _QFORMER + "output_query.dense.{kind}",
    _BERT + "output_query.LayerNorm.{kind}": _QFORMER + "output_query.LayerNorm.{kind}",
    _BERT + "intermediate.dense.{kind}": Drop("feed-forward of text; the Q-Former reads photos alone here"),
    _BERT + "output.dense.{kind}": Drop("feed-forward of text"),
    _BERT + "output.LayerNorm.{kind}": Drop("feed-forward of text"),
    "Qformer.bert.embeddings.word_embeddings.weight": Drop("text"),
    "Qformer.bert.embeddings.position_embeddings.weight": Drop("text"),
    "Qformer.bert.embeddings.position_ids": Drop("a count from 0, no weight"),
    "Qformer.cls.{rest}": Drop("BERT's head for words"),
    "t5_proj.{kind}": Drop("BLIP-2's own projection, to FLAN-T5"),
    "opt_proj.{kind}": Drop("BLIP-2's own projection, to OPT"),
    "vision_proj.{kind}": Drop("head of BLIP-2's contrastive loss"),
    "text_proj.{kind}": Drop("head of BLIP-2's contrastive loss"),
    "itm_head.{kind}": Drop("head of BLIP-2's matching loss"),
    "temp": Drop("temperature of BLIP-2's contrastive loss"),
}

CONNECTOR_RULES: dict[str, Target] = {
    "llama_proj.{kind}": "connector.layers.0.{kind}",
    "llama_proj2.{kind}": "connector.layers.1.{kind}",
}

_PHI, _OURS = "llama_model.model.layers.{L}.", "language_model.model.layers.{L}."

LANGUAGE_RULES: dict[str, Target] = {
    "llama_model.model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "llama_model.model.final_layernorm.{kind}": "language_model.model.final_layernorm.{kind}",
    "llama_model.lm_head.{kind}": "language_model.lm_head.{kind}",
    _PHI + "input_layernorm.{kind}": _OURS + "input_layernorm.{kind}",
    # Before this table, heads of queries, keys and values, which upstream interleaves, have become three blocks.
    _PHI + "self_attn.query_key_value.{kind}": tuple(_OURS + f"self_attn.{name}_proj.{{kind}}" for name in "qkv"),
    _PHI + "self_attn.dense.{kind}": _OURS + "self_attn.dense.{kind}",
    _PHI + "self_attn.q_layernorm.{kind}": _OURS + "self_attn.q_layernorm.{kind}",
    _PHI + "self_attn.k_layernorm.{kind}": _OURS + "self_attn.k_layernorm.{kind}",
    _PHI + "post_layernorm.weight": _OURS + "self_attn.output_layernorm.weight",
    _PHI + "mlp.fc1.{kind}": _OURS + "mlp.fc1.{kind}",
    _PHI + "mlp.fc2.{kind}": _OURS + "mlp.fc2.{kind}",
}

# Today's Phi-2 keeps queries, keys and values apart.
SPLIT_RULES: dict[str, Target] = {
    **{_PHI + f"self_attn.{name}_proj.{{kind}}": _OURS + f"self_attn.{name}_proj.{{kind}}" for name in "qkv"},
    _PHI + "self_attn.rotary_emb.inv_freq": Drop("computed from the configuration"),
}

LORA_RULES: dict[str, Target] = {
    # One first factor for the fused layer: the key and value projections take the same.
    _PHI + "self_attn.query_key_value.lora_A.weight": _OURS + "self_attn.q_proj.lora_A.weight",
    _PHI + "self_attn.query_key_value.lora_B.weight": tuple(_OURS + f"self_attn.{name}_proj.lora_B.weight" for name in "qkv"),
    _PHI + "self_attn.dense.lora_A.weight": _OURS + "self_attn.dense.lora_A.weight",
    _PHI + "self_attn.dense.lora_B.weight": _OURS + "self_attn.dense.lora_B.weight",
}


def key_tables(vision_layers: int) -> dict[str, KeyTable]:
    """A table for each file that `convert` reads."""
    vision, qformer = vision_rules(vision_layers), QFORMER_RULES
    everything = {**vision, **qformer, **CONNECTOR_RULES, **LANGUAGE_RULES, **LORA_RULES}
    return {
        "vision": KeyTable(vision),
        "qformer": KeyTable(qformer),
        "language": KeyTable(LANGUAGE_RULES, SPLIT_RULES),
        "checkpoint": KeyTable(everything, SPLIT_RULES),
    }
