"""Weights that are not numbers are refused when they are read."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn


def check_finite(module: nn.Module, source: object) -> None:
    """Check that no weights or buffers of a module hold NaN or infinity.

    Args:
        module: whose plain floating point tensors are looked at once; quantized ones, and those that are not in memory, are not.
        source: what they were read from.

    Raises:
        ValueError: some do; the message names the source and the first of them.
    """
    broken = [
        name for name, tensor in chain(module.named_parameters(), module.named_buffers()) if not _is_finite(tensor)
    ]
    if broken:
        others = f" and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise ValueError(
            f"{source}: the weights hold NaN or infinity, in {broken[0]!r}{others}; training diverged or the file is damaged: "
            "take an earlier checkpoint, or fetch the file again"
        )


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
    if not plain or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
        return True
    # NaN and infinity go through a sum, which is faster than a test of each number; a sum of large numbers may overflow by itself.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(float(total)) or bool(tensor.isfinite().all())
