"""Which tensor of BLIP-2's first-stage file, or of a BERT, is which of a `QFormerPretrainingModel`.

`blip2_pretrained.pth` names as LAVIS's `Blip2Qformer` holds them; BERT as transformers' `BertForMaskedLM` does.
"""

from __future__ import annotations

from salticid.checkpoints.key_table import Drop, Target
from salticid.checkpoints.tinygpt_v_keys import QFORMER_RULES

_LAYER = "qformer.encoder.layer.{L}."
_TEXT = {
    "intermediate.dense.{kind}": _LAYER + "intermediate.dense.{kind}",
    "output.dense.{kind}": _LAYER + "output.dense.{kind}",
    "output.LayerNorm.{kind}": _LAYER + "output.LayerNorm.{kind}",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
}
_WORD_HEAD: dict[str, Target] = {
    "cls.predictions.transform.dense.{kind}": "word_head.dense.{kind}",
    "cls.predictions.transform.LayerNorm.{kind}": "word_head.norm.{kind}",
    "cls.predictions.bias": "word_head.bias",
    "cls.predictions.decoder.{kind}": Drop("the word embeddings, and the bias once more"),
}

# The connector of a whole model takes the same names, behind `connector.`; what serves texts alone is wanted here and dropped there.
_SHARED: dict[str, Target] = {
    upstream: target.removeprefix("connector.") if isinstance(target, str) else target
    for upstream, target in QFORMER_RULES.items()
    if upstream != "Qformer.cls.{rest}"
}

BLIP2_RULES: dict[str, Target] = {
    **_SHARED,
    **{f"Qformer.bert.{upstream}": target for upstream, target in _EMBEDDINGS.items()},
    **{f"Qformer.bert.encoder.layer.{{L}}.{upstream}": target for upstream, target in _TEXT.items()},
    **{f"Qformer.{upstream}": target for upstream, target in _WORD_HEAD.items()},
    "vision_proj.{kind}": "vision_projection.{kind}",
    "text_proj.{kind}": "text_projection.{kind}",
    "itm_head.{kind}": "match_head.{kind}",
    "temp": "temperature",
    "visual_encoder.{rest}": Drop("the tower has a file of its own"),
}

BERT_RULES: dict[str, Target] = {
    "bert.embeddings.LayerNorm.{kind}": "qformer.layernorm.{kind}",
    "bert.embeddings.token_type_embeddings.weight": Drop("a Q-Former knows queries from text by their feed-forwards"),
    **{f"bert.{upstream}": target for upstream, target in _EMBEDDINGS.items()},
    **{f"bert.encoder.layer.{{L}}.{upstream}": target for upstream, target in _TEXT.items()},
    **{
        f"bert.encoder.layer.{{L}}.attention.{upstream}.{{kind}}": _LAYER + f"attention.{ours}.{{kind}}"
        for upstream, ours in {
            "self.query": "attention.query",
            "self.key": "attention.key",
            "self.value": "attention.value",
            "output.dense": "output.dense",
            "output.LayerNorm": "output.LayerNorm",
        }.items()
    },
    **_WORD_HEAD,
}
