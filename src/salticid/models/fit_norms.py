"""A start for extra normalisations that disturbs a pretrained language model as little as it can.

A norm that starts as an identity still takes the scale from what it normalises: SmolLM2-135M goes from a loss of 3.2 to 15.9 by three
norms whose weights are one. Fitted to what the layers gave before, by least squares, the same norms leave it at 5.1 (captions of
Flickr8k, without any training). The language model writes the text for that itself, so no data is needed (as in LLM-QAT, arXiv
2305.17888, section 3.1).

B batch, T tokens, N rows, K depth of a head, D width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from salticid.models.norms import PROJECTIONS, HeadLayerNorm, RootMeanSquareLayerNorm

TEXTS = 16
LENGTH = 128


def fit_norms(language_model: PreTrainedModel, plain: PreTrainedModel, seed: int = 0) -> None:
    """Set the weights of extra normalisations to what repeats the plain language model best, layer by layer.

    Args:
        language_model: has the norms of `add_norms`, and otherwise the weights of `plain`. plain: the same without norms.
        seed: of the text that `plain` writes for it.
    """
    outputs = _record(plain, write_texts(plain, seed))
    for layer, recorded in zip(cast(Any, language_model.base_model).layers, outputs, strict=True):
        for projection, name in PROJECTIONS.values():
            if isinstance(norm := getattr(layer.self_attn, name, None), HeadLayerNorm):
                fit_layer_norm(norm, recorded[projection].unflatten(-1, (-1, norm.normalized_shape[0])).flatten(0, -2))
        if isinstance(norm := getattr(layer.self_attn, "output_layernorm", None), RootMeanSquareLayerNorm):
            fit_rms_norm(norm, recorded["output"].flatten(0, -2))


@torch.no_grad()
def write_texts(plain: PreTrainedModel, seed: int) -> Tensor:
    """Token ids (16, 129) that the language model draws from its own distribution, from its first token on."""
    first = plain.config.bos_token_id
    first = first if isinstance(first, int) else plain.config.eos_token_id
    start = torch.full((TEXTS, 1), first if isinstance(first, int) else 0, device=plain.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = cast(Any, plain).generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            min_new_tokens=LENGTH,
            max_new_tokens=LENGTH,
            pad_token_id=0,
        )
    return cast(Tensor, ids)


@torch.no_grad()
def fit_layer_norm(norm: HeadLayerNorm, rows_NK: Tensor) -> None:
    """Weight and bias with which `norm` of these rows is nearest to the rows themselves."""
    normal_NK = F.layer_norm(rows_NK, norm.normalized_shape, eps=norm.eps)
    normal_K, mean_K = normal_NK.mean(0), rows_NK.mean(0)
    centred_NK = normal_NK - normal_K
    slope_K = (centred_NK * (rows_NK - mean_K)).sum(0) / centred_NK.square().sum(0).clamp(min=_least(norm.eps))
    norm.weight.copy_(slope_K)
    norm.bias.copy_(mean_K - slope_K * normal_K)


@torch.no_grad()
def fit_rms_norm(norm: RootMeanSquareLayerNorm, rows_ND: Tensor) -> None:
    """The weight with which `norm` of these rows is nearest to the rows themselves."""
    assert norm.weight is not None
    assert norm.eps is not None
    normal_ND = F.rms_norm(rows_ND, norm.normalized_shape, eps=norm.eps)
    norm.weight.copy_((normal_ND * rows_ND).sum(0) / normal_ND.square().sum(0).clamp(min=_least(norm.eps)))


def _least(eps: float) -> float:
    """Sums of squares below this are noise: what a norm gives is the smaller, the larger its epsilon."""
    return 1e-5 / max(eps, 1.0)


@torch.no_grad()
def _record(plain: PreTrainedModel, ids_BT: Tensor) -> list[dict[str, Tensor]]:
    """What queries, keys and attention give in each layer, in float32."""
    layers = cast(Any, plain.base_model).layers
    recorded: list[dict[str, Tensor]] = [{} for _ in layers]
    handles = []
    for layer, kept in zip(layers, recorded, strict=True):
        modules = {projection: getattr(layer.self_attn, projection) for projection, _ in PROJECTIONS.values()}
        for name, module in (modules | {"output": layer.self_attn}).items():
            handles.append(module.register_forward_hook(_keep(kept, name)))
    try:
        plain(input_ids=ids_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return recorded


def _keep(kept: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[name] = (output[0] if isinstance(output, tuple) else output).float()

    return hook
