"""The one place where Triton kernels start: on the device of their tensors, and on its current stream."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the device of a CUDA tensor the current one; do nothing for tensors elsewhere."""
    return torch.cuda.device_of(tensor)


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
    """Start `kernel` on `grid` with arguments that live where `like` does.

    Triton takes device and stream from what is current, and a custom op does not make its tensors' device current: without this a
    kernel on the tensors of a second GPU would run on the first one.
    """
    with device_of(like):
        kernel[grid](*arguments, **options)
