"""Softmax attention of queries over keys and values: torch's fused kernel, and other ways where they are faster.

B rows, T new tokens, S tokens so far, H query heads, G key-value heads, N = H / G, K depth of a head,
R rows of width W.

In bfloat16 on a processor the fused kernel packs all keys and values again for each head and block of queries, and a product with one
query is set up anew for every length. A token is therefore attended by what it is, sums of weighted rows: of the values, weighted by how
much each is attended, and of the keys, stored channel by channel, weighted by the query. `quant.native` has a kernel for that; without it,
and where each head has keys of its own, torch's `embedding_bag` computes such sums. `benchmarks/engine.md` has the times.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from salticid.quant import native
from salticid.quant.processor import HAS_PACKED_BFLOAT16

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


def reads_channels(heads: int, groups: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Is a token attended by our own kernel, or by sums of rows? The cache must hold keys by channel then, (B, G, K, S)."""
    bfloat16 = dtype == torch.bfloat16 and device.type == "cpu"
    return bfloat16 and (native.available() or (heads == groups and HAS_PACKED_BFLOAT16))


def attend_once(q_BGNK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B11S: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """One token of each row over all that stand in its cache, (B, G, N, K). Keys that are stored by channel come as their transpose."""
    if k_BGSK.stride(2) == 1 and q_BGNK.dtype == torch.bfloat16 and native.available():
        return native.attend(q_BGNK, k_BGSK, v_BGSK, mask_B11S, scale, softcap)
    if k_BGSK.stride(2) == 1:
        scores_BGKS = _sum_rows(k_BGSK.transpose(2, 3), q_BGNK * scale)
        return _sum_rows(v_BGSK, _softmax(scores_BGKS, mask_B11S, softcap))
    if softcap is None:
        return scaled_dot_product_attention(q_BGNK, k_BGSK, v_BGSK, mask_B11S, scale=scale)
    # Keys first: a product with few rows on the left is the slow one. And three dimensions: with four, matmul would copy the cache.
    scores = torch.bmm(k_BGSK.flatten(0, 1), (q_BGNK * scale).flatten(0, 1).transpose(1, 2)).transpose(1, 2)
    weights_BGNS = _softmax(scores.unflatten(0, q_BGNK.shape[:2]), mask_B11S, softcap)
    return torch.bmm(weights_BGNS.flatten(0, 1), v_BGSK.flatten(0, 1)).view(q_BGNK.shape)


def _sum_rows(rows_BGRW: Tensor, weights_BG1R: Tensor) -> Tensor:
    """The product (B, G, 1, R) @ (B, G, R, W) of rows that are a part of a wider or longer store, read where they lie."""
    batch, groups, count, width = rows_BGRW.shape
    step = rows_BGRW.stride(2)
    apart = rows_BGRW.stride(1) // step
    table = rows_BGRW.as_strided(((batch * groups - 1) * apart + count, width), (step, 1))
    return embedding_bag(_places(batch * groups, apart, count), table, mode="sum", per_sample_weights=weights_BG1R.reshape(-1, count)).view(
        batch, groups, 1, width
    )


@lru_cache(maxsize=4)
def _places(bags: int, apart: int, count: int) -> Tensor:
    """The rows that each bag sums, (bags, count): all layers of a step have them in common."""
    return torch.arange(bags).mul_(apart).unsqueeze(1) + torch.arange(count)


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
