"""Batches of pixels by the number of their step, on any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from emu_tokenizers.distributed import num_ranks, rank
from emu_tokenizers.weight_checks import check_identity

KINDS = ("image", "video")
Places = Mapping[str, Sequence[int]]
"""For each kind the places in a step that are asked for, of 0 to count - 1."""


class StepSource(Protocol):
    """What a loader draws its batches from.

    It may also have `identity`, plain settings that decide what is drawn; and, where it reads streams, `positions`, plain numbers that say
    where they stand, and `go_to(positions)`.
    """

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each kind ("image", "video") in a step, over all ranks."""
        ...

    def draw(self, seed: int, step: int, places: Places) -> dict[str, Tensor]:
        """The samples at these places of a step, a function of the arguments alone: "image" (n, 3, H, W), "video" (n, T, 3, H, W).

        Each sample is the same whichever others are asked for with it; sources that draw one by one call `draw_apart`.
        """
        ...


def draw_apart(
    sample: Callable[[str, np.random.Generator], Tensor], seed: int, step: int, places: Places
) -> dict[str, Tensor]:
    """`StepSource.draw` where each sample has a generator of its own.

    Args:
        sample: (kind, generator) -> pixels (3, H, W), or (T, 3, H, W) of a video.
        seed, step, places: see `StepSource.draw`.
    """
    return {
        kind: torch.stack(
            [sample(kind, np.random.default_rng((seed, step, KINDS.index(kind), place))) for place in chosen]
        )
        for kind, chosen in places.items()
    }


class PixelLoader:
    """Batches {"image": (B, 3, H, W), "video": (B, T, 3, H, W)}; its state is the number of the step.

    The state also holds what the samples are drawn from: seed, counts, length, and what `data.identity` adds; a position that was saved
    under another one is refused.

    Each sample is a function of the seed, the step and its place in the step. Of N ranks that train together each draws every N-th,
    so that a step sees the same samples on any number of ranks.

    Attributes:
        step: number of the next batch.
        waited: seconds in which the trainer has waited for batches.

    Raises:
        ValueError: when iterated, the samples of a step cannot be divided among the ranks.
    """

    def __init__(self, data: StepSource, length: int, seed: int) -> None:
        self.data, self.length, self.seed = data, length, seed
        self.step = 0
        self.waited = 0.0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first = self.step % self.length
        for _ in range(first, self.length):
            self.step += 1
            began = time.perf_counter()
            batch = self.batch(self.step - 1)
            self.waited += time.perf_counter() - began
            yield batch

    def batch(self, step: int) -> dict[str, Tensor]:
        """This rank's share of a step."""
        places = {}
        for kind, count in self.data.counts.items():
            if count % num_ranks():
                raise ValueError(
                    f"{count} samples of kind {kind!r} a step cannot be divided among {num_ranks()} ranks; choose a multiple"
                )
            places[kind] = range(rank(), count, num_ranks())
        return self.data.draw(self.seed, step, places)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which samples a step holds."""
        own = {"seed": self.seed, "steps_per_epoch": self.length, "samples_per_step": dict(self.data.counts)}
        return own | dict(getattr(self.data, "identity", {}))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, and in what."""
        positions = getattr(self.data, "positions", None)
        return {"step": self.step, **self.identity, **({} if positions is None else {"streams": positions})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the steps that a state counts.

        Raises:
            ValueError: they were drawn from other samples.
        """
        check_identity(state, self.identity)
        self.step = int(state["step"])
        if "streams" in state:
            self.data.go_to(state["streams"])  # type: ignore[attr-defined]


class SampledPixels(LightningDataModule):
    """Data whose samples are drawn one by one: a `StepSource` by `sample` and `counts`, which subclasses give.

    Attributes:
        seed: of every choice.
        steps_per_epoch: steps that Lightning calls an epoch.
    """

    seed: int
    steps_per_epoch: int

    def __str__(self) -> str:
        return repr(self)  # Lightning's own loads data to tell its size

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each kind in a step, over all ranks."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many samples a step has")

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One sample, drawn by `random`: (3, H, W), or (T, 3, H, W) of a video."""
        raise NotImplementedError(f"{type(self).__name__} draws no samples")

    def draw(self, seed: int, step: int, places: Places) -> dict[str, Tensor]:
        """See `StepSource`."""
        return draw_apart(self.sample, seed, step, places)

    def train_dataloader(self) -> PixelLoader:
        """Batches of the run."""
        return PixelLoader(self, self.steps_per_epoch, self.seed)
