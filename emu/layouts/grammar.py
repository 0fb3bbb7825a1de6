"""The grammar of a block of codes, as data, and what reading and constraining ask of a layout.

A `BlockTemplate` is the one description of what follows the header of a block: which positions are forced (end of row, end of frame, end of
block) and which range of ids each free position draws from. Building, parsing and constrained generation all read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from emu.modalities import Grid
from emu.vocabulary import Vocabulary

FREE = -1
"""Marks a position of a template that holds a code rather than a forced token."""

IdRange = tuple[int, int]
"""(first id, number of ids)."""


@dataclass(frozen=True)
class BlockTemplate:
    """Positions of a block in sequence order.

    Attributes:
        forced: (n,) int64; the id at forced positions, `FREE` at the others.
        first: (n,) int64; first id of the range of a free position, 0 at forced ones.
        count: (n,) int64; number of ids of that range, 0 at forced ones.
        shape: shape of the codes that fill the free positions in order, with a last axis where there are several codebooks.
        codebooks: number of codes of each cell.
    """

    forced: Tensor
    first: Tensor
    count: Tensor
    shape: tuple[int, ...]
    codebooks: int = 1

    @property
    def free(self) -> Tensor:
        """(n,) bool: positions that hold a code."""
        return self.forced == FREE

    @property
    def cells(self) -> tuple[int, ...]:
        """Axis lengths of the grid: `shape` without the codebooks."""
        return self.shape[:-1] if self.codebooks > 1 else self.shape

    def __len__(self) -> int:
        return len(self.forced)

    def fill(self, codes: Tensor) -> Tensor:
        """Ids of the block with these codes.

        Args:
            codes: int64 of `shape`, 0-based.

        Raises:
            ValueError: the codes have another shape or lie outside their range.
        """
        if tuple(codes.shape) != self.shape:
            raise ValueError(f"codes of shape {tuple(codes.shape)} do not fill a block for {self.shape}")
        flat, free = codes.reshape(-1).to(torch.int64).cpu(), self.free
        wrong = (flat < 0) | (flat >= self.count[free])
        if wrong.any():
            worst = int(flat[wrong][0])
            raise ValueError(f"code {worst} is outside its codebook of {int(self.count[free][wrong][0])} codes")
        ids = self.forced.clone()
        ids[free] = flat + self.first[free]
        return ids

    def read(self, ids: Tensor) -> Tensor:
        """The inverse of `fill`.

        Args:
            ids: (n,) int64.

        Returns:
            Codes of `shape`, int64, 0-based.

        Raises:
            ValueError: the block is cut short, a forced position holds another id or a code is outside its range.
        """
        if len(ids) < len(self):
            raise ValueError(
                f"a block of shape {self.shape} has {len(self)} tokens, the sequence ends after {len(ids)}"
            )
        ids, free = ids[: len(self)].cpu(), self.free
        if not torch.equal(ids[~free], self.forced[~free]):
            place = int((~free & (ids != self.forced)).nonzero()[0])
            raise ValueError(
                f"position {place} of a block of shape {self.shape} holds {int(ids[place])}, expected {int(self.forced[place])}"
            )
        codes = ids[free] - self.first[free]
        wrong = (codes < 0) | (codes >= self.count[free])
        if wrong.any():
            place = int(free.nonzero()[wrong][0])
            raise ValueError(
                f"position {place} of a block of shape {self.shape} holds {int(ids[place])}, which is not a code of its codebook"
            )
        return codes.reshape(self.shape)

    def allowed(self, position: int) -> IdRange:
        """The ids that may stand at a position; a forced one is a range of one id."""
        forced = int(self.forced[position])
        return (int(self.first[position]), int(self.count[position])) if forced == FREE else (forced, 1)


class Grammar(Protocol):
    """What reading and constraining ask of a layout, see `Layout`."""

    vocabulary: Vocabulary
    openings: tuple[int, ...]
    plans: Mapping[str, tuple[int, int]]
    begin_answer: int | None
    end_answer: int | None
    hole: int | None
    header_end: str

    def header_length(self, ids: Tensor) -> int | None: ...

    def header_choices(self, begun: Sequence[int]) -> tuple[IdRange, ...]: ...

    def parse_header(self, ids: Sequence[int]) -> tuple[str, Grid, dict[str, Any]]: ...

    def block(self, modality: str, grid: Grid) -> BlockTemplate: ...

    def describe(self, index: int) -> str: ...


def grid_template(
    grid: Sequence[int], ranges: Sequence[IdRange], separators: tuple[list[int], list[int], list[int]], *, last: bool
) -> BlockTemplate:
    """Template of a raster-ordered grid.

    Args:
        grid: 1 to 3 axis lengths, slowest first.
        ranges: id range of each codebook; the codes of one position follow each other.
        separators: ids after a row, after a frame and at the end of the block.
        last: whether row and frame separators also follow the last row and the last frame.

    Raises:
        ValueError: the grid has no or more than three axes, or an empty one.
    """
    if not 1 <= len(grid) <= 3 or any(length < 1 for length in grid):
        raise ValueError(f"a grid has 1 to 3 axes of at least one code each, got {tuple(grid)}")
    frames, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
    after_row, after_frame, end = (torch.tensor(ids, dtype=torch.int64) for ids in separators)
    # Fewer axes are a grid of one row or one frame, so that all ranks share the three levels of separators.
    row = torch.full((columns * len(ranges),), FREE, dtype=torch.int64)
    frame = _joined(row, after_row, rows, last)
    forced = torch.cat([_joined(frame, after_frame, frames, last), end])
    free = forced == FREE
    first, count = torch.zeros_like(forced), torch.zeros_like(forced)
    positions = frames * rows * columns
    first[free] = torch.tensor([start for start, _ in ranges]).repeat(positions)
    count[free] = torch.tensor([size for _, size in ranges]).repeat(positions)
    shape = tuple(grid) + ((len(ranges),) if len(ranges) > 1 else ())
    return BlockTemplate(forced, first, count, shape, len(ranges))


def _joined(piece: Tensor, separator: Tensor, times: int, last: bool) -> Tensor:
    joined = torch.cat([piece, separator]).repeat(times)
    return joined if last or not len(separator) else joined[: -len(separator)]
