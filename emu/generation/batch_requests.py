"""What a running batch can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from emu.generation.linear import IdRange
from emu.generation.sampling import Sampling
from emu.modalities import Grid


@dataclass(frozen=True, eq=False)
class GridRequest:
    """One block of codes after a prompt.

    Attributes:
        prompt: (n,) int64 ids on the CPU that end in the block's header.
        negative: what it is guided against, as the prompt is; not read without guidance.
        modality, grid: of the block.
        sampling: how codes are drawn.
        seed, stream: of the noise.
        prefix_codes: the first k steps of the grid's slowest axis, (k, ...), where they are given.
        window: tokens tried in one pass; above 1 asks for exact speculative decoding.
        start: position of the block's first token in the noise, for blocks after other generated tokens.
    """

    prompt: Tensor
    negative: Tensor | None
    modality: str
    grid: Grid
    sampling: Sampling
    seed: int = 0
    stream: int = 0
    prefix_codes: Tensor | None = None
    window: int = 1
    start: int = 0


@dataclass(frozen=True, eq=False)
class FillRequest:
    """The hidden cells of a block after a prompt.

    Attributes:
        prompt, negative, modality, grid, sampling, seed, stream, window: as of a `GridRequest`; the kept cells are shown after the header.
        codes: (*grid) int64, with a last axis where there are several codebooks; not read at hidden cells.
        hidden: (*grid) bool.
    """

    prompt: Tensor
    negative: Tensor | None
    modality: str
    grid: Grid
    codes: Tensor
    hidden: Tensor
    sampling: Sampling
    seed: int = 0
    stream: int = 0
    window: int = 1


@dataclass(frozen=True, eq=False)
class TextRequest:
    """Text after a prompt, up to the end token.

    Attributes:
        prompt: (n,) int64 ids on the CPU.
        sampling: how tokens are drawn; its guidance is 1.
        max_new_tokens: most tokens written; none are written beyond the model's positions.
        seed, stream: of the noise.
    """

    prompt: Tensor
    sampling: Sampling
    max_new_tokens: int
    seed: int = 0
    stream: int = 0


@dataclass(frozen=True, eq=False)
class DocumentTextRequest:
    """Text of a document of text and blocks, up to a block or the end: what may follow is said token by token.

    Attributes:
        prompt, sampling, seed, stream: as of a `TextRequest`.
        ranges: the ids that the first token may be.
        follow: called with each token that is drawn, from the thread that steps the batch; returns the ids that are forced after it, and
            what the next one may be: nothing where the text ends.
        limit: most tokens, forced ones included.
        start: position of the first token in the noise.
    """

    prompt: Tensor
    sampling: Sampling
    ranges: tuple[IdRange, ...]
    follow: Callable[[int], tuple[Sequence[int], tuple[IdRange, ...]]]
    limit: int
    seed: int = 0
    stream: int = 0
    start: int = 0


BatchRequest = GridRequest | FillRequest | TextRequest | DocumentTextRequest
