"""Random tensors for kernels: sizes at the edges of blocks, numbers of very different sizes, any arrangement in memory; comparisons."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Options = dict[str, Any]
EDGES = (1, 2, 3, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 45, 63, 64, 65)


class Chance:
    """Everything about a case follows from its op and its number."""

    def __init__(self, op: str, number: int) -> None:
        self._random = random.Random(f"{op} {number}")
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(60))

    def pick(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def often(self, share: float) -> bool:
        return self._random.random() < share

    def number(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def size(self, largest: int = 65) -> int:
        """A size at the edge of a block, or any."""
        edges = [edge for edge in EDGES if edge <= largest]
        return self.pick(edges) if self.often(0.7) else self._random.randint(1, largest)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 in low..high (exclusive)."""
        return torch.randint(low, high, shape, generator=self._generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def numbers(self, shape: Sequence[int], dtype: torch.dtype, largest: float = 100.0) -> Tensor:
        """Numbers of one of several kinds, none much above `largest`, in any arrangement in memory."""
        x = torch.randn(tuple(shape), generator=self._generator)
        kind = self.pick(("usual", "usual", "usual", "small", "large", "equal", "zeros", "sparse", "outlier", "mixed"))
        if kind == "small":
            x *= 1e-3
        elif kind == "large":
            x *= largest / 4
        elif kind == "equal":
            x = torch.full_like(x, self.number(-2.0, 2.0))
        elif kind == "zeros":
            x.zero_()
        elif kind == "sparse":
            x *= self.uniform(*shape) < 0.2
        elif kind == "outlier" and x.numel():
            x.view(-1)[self._random.randrange(x.numel())] = largest
        elif kind == "mixed":
            x *= 10.0 ** (4.0 * self.uniform(*shape) - 3.0)
        return self.laid_out(x.clamp_(-largest, largest).to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The same numbers: without gaps, as a part of wider rows, at an odd address, with axes swapped, or turned in memory."""
        form = self.pick(("plain", "plain", "wide", "odd", "swapped", "stepped", "last first"))
        if form == "wide":
            return torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]]
        if form == "odd":
            return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        if form == "swapped" and x.dim() > 1:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if form == "stepped":
            return torch.stack([x, -x], 0 if x.dim() == 0 else x.dim() - 1).select(max(x.dim() - 1, 0), 0)
        if form == "last first" and x.dim() > 1:
            return x.movedim(-1, 0).contiguous().movedim(0, -1)
        return x


def compare(name: str, found: Tensor, truth: Tensor, bound: Tensor | float) -> str | None:
    """What is wrong with a result: its shape, or numbers further from the truth than a bound (of its shape, or one)."""
    if found.shape != truth.shape:
        return f"{name} has the shape {tuple(found.shape)}, not {tuple(truth.shape)}"
    if not found.numel():
        return None
    excess = (found.double() - truth).abs() - bound
    if not bool((excess <= 0).all()):  # a NaN is larger than every bound
        worst = int(excess.nan_to_num(nan=torch.inf).argmax())
        ours, theirs = found.flatten()[worst].item(), truth.flatten()[worst].item()
        return f"{name} is {ours:.9g}, not {theirs:.9g}, at {worst} of {tuple(found.shape)}"
    return None


def rounding(dtype: torch.dtype) -> tuple[float, float]:
    """The relative error of a few roundings in a dtype, computed in float32 at best, and the absolute one of the smallest numbers."""
    info = torch.finfo(dtype)
    return 3.0 * max(info.eps, 8 * torch.finfo(torch.float32).eps), 4.0 * info.tiny * info.eps + 1e-30


def draw_dtype(chance: Chance, kernels: bool) -> torch.dtype:
    """Triton's interpreter does not compute in bfloat16."""
    return chance.pick((torch.float32, torch.float32, torch.float16, torch.float16 if kernels else torch.bfloat16))


def first_of(*problems: str | None) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
