"""Argument checks shared by the public ops; every message names the argument, what it was and what it has to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def check_tensor(name: str, value: Tensor, shape: str, num_dims: int, dtypes: Sequence[torch.dtype]) -> None:
    """Raise unless `value` is a tensor with `num_dims` dimensions and one of `dtypes`; `shape` words the expectation."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}")
    if value.dim() != num_dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must have one of the dtypes {allowed}, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], reason: str) -> None:
    """Raise unless `value` has exactly the shape `expected`, which follows from `reason`."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {expected} to match {reason}, got {tuple(value.shape)}")


def check_like(name: str, value: Tensor, other_name: str, other: Tensor, same_dtype: bool = False) -> None:
    """Raise unless `value` lives on the device of `other` (and has its dtype when `same_dtype`)."""
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device} but {other_name} is on {other.device}; move one of them")
    if same_dtype and value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype} but {other_name} has {other.dtype}; convert one of them")


def check_not_empty(name: str, value: Tensor, axis: int, meaning: str) -> None:
    """Raise when axis `axis` of `value`, which counts `meaning`, has length zero."""
    if value.shape[axis] == 0:
        raise ValueError(f"{name} has no {meaning}: its shape is {tuple(value.shape)}")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number above zero."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums run in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
