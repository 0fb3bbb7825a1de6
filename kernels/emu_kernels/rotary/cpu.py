"""The rotation in torch, on every device."""

from __future__ import annotations

from torch import Tensor


def rotary_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rotary`."""
    # Two passes over x: the sign of the sines spares the concatenation of two halves, one of them negated.
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
