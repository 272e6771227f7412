"""Softmax attention of queries over keys and values: torch's fused kernel, and plain products where they are faster.

B rows, T new tokens, S tokens so far, H query heads, G key-value heads, N = H / G, K depth of a head.

In bfloat16 on a processor the fused kernel packs all keys and values again for each head and block of queries. One layer of Phi-2 (32
heads, depth 80), 620 tokens so far, one thread: a token takes 2.3 ms by the fused kernel and 0.46 ms by products; 600 tokens 42 ms and,
in blocks of 200, 19 ms. `benchmarks/engine.md` has the command.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

QUERY_BLOCK = 192
"""Queries that are multiplied at a time: a bound on the scores, and few that lie beyond the diagonal."""


def attend_causally(q_1HTK: Tensor, k_1GSK: Tensor, v_1GSK: Tensor, scale: float, softcap: float | None, window: int | None) -> Tensor:
    """The last T tokens over all S, each over those up to itself, (1, H, T, K). softcap: Gemma 2's. window: how many each one sees."""
    (_, heads, new, _), (_, groups, whole, _) = q_1HTK.shape, k_1GSK.shape
    windowed = window is not None and whole > window
    if softcap is not None or _products_are_faster(q_1HTK, 2 * QUERY_BLOCK):
        return _attend_in_blocks(q_1HTK, k_1GSK, v_1GSK, scale, softcap, window if windowed else None)
    if new == whole and not windowed:
        return scaled_dot_product_attention(q_1HTK, k_1GSK, v_1GSK, is_causal=True, scale=scale, enable_gqa=heads != groups)
    mask_TS = _causal_mask(q_1HTK, whole - new, new, window if windowed else None)
    repeated = heads // groups
    if repeated > 1:
        k_1GSK, v_1GSK = k_1GSK.repeat_interleave(repeated, 1), v_1GSK.repeat_interleave(repeated, 1)
    return scaled_dot_product_attention(q_1HTK, k_1GSK, v_1GSK, mask_TS, scale=scale)


def attend_once(q_BGNK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B11S: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """One token of each row over all that stand in its cache, (B, G, N, K)."""
    if softcap is None and not (q_BGNK.shape[2] == 1 and _products_are_faster(q_BGNK, 1)):
        return scaled_dot_product_attention(q_BGNK, k_BGSK, v_BGSK, mask_B11S, scale=scale)
    # Keys first: a product with few rows on the left is the slow one. And three dimensions: with four, matmul would copy the cache.
    scores = torch.bmm(k_BGSK.flatten(0, 1), (q_BGNK * scale).flatten(0, 1).transpose(1, 2)).transpose(1, 2)
    weights_BGNS = _softmax(scores.unflatten(0, q_BGNK.shape[:2]), mask_B11S, softcap)
    return torch.bmm(weights_BGNS.flatten(0, 1), v_BGSK.flatten(0, 1)).view(q_BGNK.shape)


def _products_are_faster(q: Tensor, tokens: int) -> bool:
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] >= tokens


def _attend_in_blocks(q_1HTK: Tensor, k_1GSK: Tensor, v_1GSK: Tensor, scale: float, softcap: float | None, window: int | None) -> Tensor:
    """Query heads of one key-value head stand one after the other as its queries, so that nothing is repeated."""
    (_, heads, new, depth), (_, groups, whole, _) = q_1HTK.shape, k_1GSK.shape
    q_GNTK = (q_1HTK * scale).view(groups, heads // groups, new, depth)
    y_GNTK = torch.empty_like(q_GNTK)
    for start in range(0, new, QUERY_BLOCK):
        count = min(QUERY_BLOCK, new - start)
        before = whole - new + start
        q_GMK = q_GNTK[:, :, start : start + count].reshape(groups, -1, depth)
        scores_GNTS = (q_GMK @ k_1GSK[0, :, : before + count].transpose(1, 2)).view(groups, -1, count, before + count)
        weights_GNTS = _softmax(scores_GNTS, _causal_mask(q_GMK, before, count, window), softcap)
        y_GMK = weights_GNTS.flatten(1, 2) @ v_1GSK[0, :, : before + count]
        y_GNTK[:, :, start : start + count] = y_GMK.view(groups, -1, count, depth)
    return y_GNTK.view(1, heads, new, depth)


def _softmax(scores: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores if mask is None else scores + mask).softmax(-1)


def _causal_mask(like: Tensor, before: int, new: int, window: int | None) -> Tensor:
    """(T, S): zero where a token sees another, else minus infinity."""
    mask_TS = like.new_full((new, before + new), -torch.inf).triu_(before + 1)
    return mask_TS if window is None else mask_TS + like.new_full(mask_TS.shape, -torch.inf).tril_(before - window)
