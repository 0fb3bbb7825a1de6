"""What is checked of weights and positions that are read: numbers are finite, shapes are the model's, the data is that of the position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 4
"""Most weights that do not fit that are named."""


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Compare what a saved position of a loader was saved under with what the loader draws from now.

    Args:
        state: of the saved loader.
        identity: plain settings of the present one, by name.

    Raises:
        ValueError: some of them differ; the message names each with both values.
    """
    changed = [
        f"{name} was {_short(state.get(name))} and is {_short(value)}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"the checkpoint's position is one in other data: {'; '.join(changed)}; resume with the same settings, or start anew "
            "(--overwrite true, or another folder)"
        )


def check_weights(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], strict: bool = True) -> None:
    """Compare names and shapes of a checkpoint's weights with a module's.

    Args:
        saved: weights of the checkpoint by name.
        ours: those of the module that is to go on.
        strict: whether the checkpoint must hold all of the module's.

    Raises:
        ValueError: they do not fit; the message names the first few.
    """
    wrong = [
        f"{name} is {list(value.shape)} in the checkpoint and {list(ours[name].shape)} in the model"
        for name, value in saved.items()
        if name in ours and value.shape != ours[name].shape
    ]
    wrong += [f"the model has no {name}" for name in saved if name not in ours]
    wrong += [f"the checkpoint has no {name}" for name in ours if strict and name not in saved]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"the checkpoint is of another model than this configuration's: {'; '.join(wrong[:SHOWN])}{more}; resume with the model "
            "options of its run"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
