"""The rotation in torch, alone, after a norm, and into a cache: the CPU path, float64 on a GPU, and devices without kernels.

Compilers take it as the account of its shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.rms_norm.cpu import normalise, rms_norm_backward_torch, rms_norm_torch


def rotary_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rotary`."""
    # Two passes over x: the sign of the sines spares the concatenation of two halves, one of them negated.
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def norm_rotary_torch(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.norm_rotary_op`."""
    normed, inverse = normalise(x, weight, eps)
    return rotary_torch(normed, cos, sin), inverse


def norm_rotary_backward_torch(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """See `op.norm_rotary_backward_op`."""
    return rms_norm_backward_torch(rotary_torch(grad, cos, -sin), x, weight, inverse)


def rotary_into_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """See `op.rotary_into_op`."""
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm_torch(q, q_weight, eps), rms_norm_torch(k, k_weight, eps)
    q, k = rotary_torch(q, cos, sin), rotary_torch(k, cos, sin)
    if places.numel() and keys.numel():
        for stored, new in ((keys, k), (values, v)):
            _write(stored, new.flatten(0, 1).to(stored.dtype), places.flatten().long())
    return q.to(keys.dtype).contiguous()


def _write(stored: Tensor, new: Tensor, places: Tensor) -> None:
    """Write the tokens of new (T, H, D) that have a place (T,) to a cache (R, H, K, D), without a read of the places by the host."""
    capacity, last = stored.shape[2], stored.shape[0] * stored.shape[2] - 1
    present = (places >= 0) & (places <= last)
    # The others write what one that has a place writes, to the same place; if none has one, what is in some place already.
    one = present.int().argmax()[None]
    place = places.index_select(0, one).clamp(0, last)
    own = stored[place // capacity, :, place % capacity]
    own = torch.where(present.any(), new.index_select(0, one), own)
    places = torch.where(present, places, place)
    stored[places // capacity, :, places % capacity] = torch.where(present[:, None, None], new, own)
