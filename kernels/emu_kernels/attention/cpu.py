"""Attention in torch over tiles of queries, each against only the keys that it can see: the CPU path, float64 on a GPU, and
devices without kernels.

Tiles (`row_tiles.py`) run in torch's flash kernel on a CPU, or in plain products under a soft cap and on other devices. Short documents
share a tile; where the result is not finite it is computed again with a tile for each, since 0 * NaN would carry a NaN or infinity from
one document to its neighbours.

Legend: see `emu_kernels.attention`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emu_kernels.attention.row_tiles import AttentionTile, cut_tiles, plan_tiles, tile_mask
from emu_kernels.checks import accumulation_dtype

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`."""
    documents = k.shape[0], k.shape[1], segment_ids, cu_seqlens, causal, window, _is_flash(q, softcap)
    options = offset, causal, window, softcap, scale
    q, k, v = (_side_by_side(x) for x in (q, k, v))
    tiles = cut_tiles(plan_tiles(*documents), offset, q.shape[1], causal)
    # Numbers are finite nearly always: share tiles first, and look afterwards.
    found = _forward(tiles, q, k, v, *options)
    if _all_finite(tiles, found):
        return found
    return _forward(cut_tiles(plan_tiles(*documents, alone=True), offset, q.shape[1], causal), q, k, v, *options)


def _is_flash(q: Tensor, softcap: float) -> bool:
    """Tell whether tiles run in torch's flash kernel, whose memory is linear in their length."""
    return not softcap and q.device.type == "cpu"


def _side_by_side(x: Tensor) -> Tensor:
    """Return x (B, S, H, D) with the features of a head side by side, without which torch's kernels in 16 bits fail."""
    return x if x.stride(3) == 1 else x.contiguous()


def _all_finite(tiles: list[AttentionTile], results: tuple[Tensor, ...]) -> bool:
    """Tell whether no document can have spoilt another one: none shares a tile, or all results are finite."""
    # One sum instead of a mask of all entries: it is finite only if they are.
    return not any(tile.shared for tile in tiles) or all(
        math.isfinite(x.sum(dtype=accumulation_dtype(x.dtype))) for x in results
    )


def _forward(
    tiles: list[AttentionTile],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offset: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp of the tiles, zeros elsewhere."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=accumulation_dtype(q.dtype))
    for tile in tiles:
        rows, keys = tile.rows, slice(tile.key_first, tile.key_last)
        queries = slice(tile.first - offset, tile.last - offset)
        tile_q, tile_k, tile_v = (
            x[rows, part].transpose(1, 2) for x, part in ((q, queries), (k, keys), (v, keys))
        )  # (B, H, S, D)
        mask, is_causal = tile_mask(tile, causal, window, q)
        if not _is_flash(q, softcap):
            tile_out, tile_lse = _plain_forward(tile_q, tile_k, tile_v, mask, is_causal, softcap, scale)
        else:
            tile_out, tile_lse = _flash(tile_q, tile_k, tile_v, 0.0, is_causal, attn_mask=mask, scale=scale)
        if tile.covers(k.shape[0], k.shape[1]):
            return tile_out.transpose(1, 2).contiguous(), tile_lse.contiguous()
        out[rows, queries] = tile_out.transpose(1, 2)
        lse[rows, :, queries] = tile_lse
    return out, lse


def attention_backward_tiled(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.backward_op`."""
    documents = k.shape[0], k.shape[1], segment_ids, cu_seqlens, causal, window
    grad, q, k, v, out = (_side_by_side(x) for x in (grad, q, k, v, out))
    arguments = grad, q, k, v, out, lse, offset, causal, window, softcap, scale
    tiles = cut_tiles(plan_tiles(*documents), offset, q.shape[1], causal)
    found = _backward(tiles, *arguments)
    if _all_finite(tiles, found):
        return found
    return _backward(cut_tiles(plan_tiles(*documents, alone=True), offset, q.shape[1], causal), *arguments)


def _backward(
    tiles: list[AttentionTile],
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offset: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of the tiles, zeros elsewhere."""
    d_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dtype = accumulation_dtype(q.dtype)
    # In the dtype of sums, since several tiles of queries add to one key.
    d_k, d_v = (torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (k, v))
    for tile in tiles:
        rows, keys = tile.rows, slice(tile.key_first, tile.key_last)
        queries = slice(tile.first - offset, tile.last - offset)
        tile_grad, tile_q, tile_out = (x[rows, queries].transpose(1, 2) for x in (grad, q, out))  # (B, H, S, D)
        tile_k, tile_v = (x[rows, keys].transpose(1, 2) for x in (k, v))
        tile_lse = lse[rows, :, queries]
        mask, is_causal = tile_mask(tile, causal, window, q)
        tensors = tile_grad, tile_q, tile_k, tile_v, tile_out, tile_lse
        if not _is_flash(q, softcap):
            grads = _plain_backward(*tensors, mask, is_causal, softcap, scale)
        else:
            grads = _flash_backward(*tensors, 0.0, is_causal, attn_mask=mask, scale=scale)
        tile_d_q, tile_d_k, tile_d_v = (x.transpose(1, 2) for x in grads)
        if tile.covers(k.shape[0], k.shape[1]):
            return tile_d_q.contiguous(), tile_d_k.to(k.dtype).contiguous(), tile_d_v.to(v.dtype).contiguous()
        d_q[rows, queries] = tile_d_q
        if tile.square:  # the first tile to see its keys
            d_k[rows, keys], d_v[rows, keys] = tile_d_k, tile_d_v
        else:
            d_k[rows, keys] += tile_d_k
            d_v[rows, keys] += tile_d_v
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


def _plain_scores(
    q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, softcap: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the masked scores and the tanh of the soft cap in them, (B, Hkv, Hq / Hkv, Sq, Sk) each."""
    scores = q @ k.transpose(-1, -2) * scale
    tanh = None
    if softcap:
        tanh = torch.tanh(scores / softcap)
        scores = softcap * tanh
    if is_causal:
        hidden = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores = scores.masked_fill_(hidden, -math.inf)
    elif mask is not None:
        scores += mask if mask.dim() == 2 else mask[:, None]
    return scores, tanh


def _by_group(x: Tensor, num_groups: int) -> Tensor:
    """Group heads, (B, H, S, D) -> (B, Hkv, H / Hkv, S, D), in the dtype that sums run in."""
    return x.unflatten(1, (num_groups, -1)).to(accumulation_dtype(x.dtype))


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, softcap: float, scale: float
) -> tuple[Tensor, Tensor]:
    grouped_q, grouped_k, grouped_v = (_by_group(x, k.shape[1]) for x in (q, k, v))
    scores, _ = _plain_scores(grouped_q, grouped_k, mask, is_causal, softcap, scale)
    lse = scores.logsumexp(-1).nan_to_num_(neginf=0.0)  # padding sees nothing
    out = scores.sub_(lse[..., None]).exp_() @ grouped_v
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    num_groups = k.shape[1]
    grad, q, out, k, v = (_by_group(x, num_groups) for x in (grad, q, out, k, v))
    scores, tanh = _plain_scores(q, k, mask, is_causal, softcap, scale)
    p = scores.sub_(lse.unflatten(1, (num_groups, -1))[..., None]).exp_()  # (B, Hkv, G, Sq, Sk)
    d_v = (p.transpose(-1, -2) @ grad).sum(2)
    d_p = grad @ v.transpose(-1, -2)
    d_scores = p * (d_p - (grad * out).sum(-1, keepdim=True)) * scale
    if tanh is not None:
        d_scores *= 1.0 - tanh.square()
    d_q = d_scores @ k
    d_k = (d_scores.transpose(-1, -2) @ q).sum(2)
    return d_q.flatten(1, 2), d_k, d_v
