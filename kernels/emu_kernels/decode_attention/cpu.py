"""Attention to a cache in torch, with a mask over all of its slots: the CPU path, float64 on a GPU, and devices without kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decode_attention_torch(q: Tensor, keys: Tensor, values: Tensor, begin: Tensor, end: Tensor, scale: float) -> Tensor:
    """See `decode_attention`."""
    tokens, groups = q.shape[1], q.shape[2] // keys.shape[1]
    slots = torch.arange(keys.shape[2], device=q.device)
    own = end[:, None] - tokens + torch.arange(tokens, device=q.device)  # (R, m)
    seen = (slots >= begin[:, None, None]) & (slots <= own[..., None])  # (R, m, C)
    empty = own < begin[:, None]
    seen = seen | empty[..., None]  # no softmax over nothing; its result is thrown away
    # The query heads of one key head become more queries of it, so that keys and values are not repeated.
    grouped = q.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (R, Hkv, groups * m, D)
    mask = seen[:, None].repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    out = out.unflatten(2, (groups, tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # (R, m, Hq, D)
    return torch.where(empty[..., None, None], 0.0, out).contiguous()
