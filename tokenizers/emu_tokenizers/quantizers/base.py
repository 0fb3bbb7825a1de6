"""The interface of all quantizers: latents in, one result type out, and ids that decode to what forward gave.

A quantizer sees latents (B, D, ...grid) and returns a `Quantized`. Subclasses work on rows (N, D) and fill three hooks:
`search` (ids), `lookup` (vectors), and `learn` (what a step adds: the gradient's path, losses, moving averages).
Arithmetic is float32 or wider whatever the model's dtype, and autocast is off inside: nearest codes are decided by
small differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Quantized:
    """What a quantizer returns.

    Attributes:
        vectors: code vectors of the ids, (B, D, ...grid), with a straight-through gradient to the latents.
        ids: codes, int64 (B, ...grid), with a last axis for the codebooks where there are several.
        losses: named scalar losses, unweighted.
    """

    vectors: Tensor
    ids: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid of codes: (h, w), (t, h, w) or (t,)."""
        return tuple(self.vectors.shape[2:])


def straight_through(latents: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` in value, bit for bit, with the gradient of `latents` alone."""
    return vectors.detach() + (latents - latents.detach())


class Quantizer(nn.Module):
    """Base of all quantizers.

    Attributes:
        embed_dim: width D of a code vector.
        codebook_sizes: number of codes of each codebook.
        loss_weights: the losses that it reports, by name, with the weights that keep its codes in use.
        statistics: last parts of the names of buffers that training alone reads: a tokenizer's fingerprint leaves them out, and weights
            without them can be loaded.
        starts_from_data: whether training should first run without it, so that its codes can start from latents.
    """

    loss_weights: Mapping[str, float] = {"commitment": 0.25}
    statistics: tuple[str, ...] = ()
    starts_from_data: bool = False

    def __init__(self, embed_dim: int, codebook_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.codebook_sizes = codebook_sizes

    def search(self, rows: Tensor) -> Tensor:
        """Codes of latent rows: (N, D) -> int64 (N,), or (N, codebooks)."""
        raise NotImplementedError

    def lookup(self, ids: Tensor) -> Tensor:
        """Code vectors of codes: int64 (...), or (..., codebooks) -> (..., D)."""
        raise NotImplementedError

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a step adds to rows (N, D) with their ids and vectors (N, D).

        Returns:
            The vectors with a gradient to the rows, and named losses. In training mode, also moves the codebook.
        """
        raise NotImplementedError

    @property
    def started(self) -> bool:
        """Whether the codes come from data already: after a start by k-means or the like, or once they were loaded."""
        return True

    def prepare(self, rows: Tensor) -> None:
        """Start a codebook from data; called with the rows (N, D) of each training step, before the search."""

    def reset_statistics(self) -> None:
        """Let training go on from the codes as they are; called after they were loaded without their statistics."""

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B, D, ...grid) -> `Quantized` with vectors of that shape and ids (B, ...grid)."""
        with torch.autocast(latents.device.type, enabled=False):
            rows = wide(latents).movedim(1, -1)  # (B, ...grid, D)
            grid = rows.shape[:-1]
            rows = rows.reshape(-1, self.embed_dim)
            if self.training:
                self.prepare(rows.detach())
            ids = self.search(rows.detach())
            vectors = self.lookup(ids)  # before `learn` moves the codebook: the ids decode to what this step saw
            vectors, losses = self.learn(rows, ids, vectors)
            vectors = vectors.unflatten(0, grid).movedim(-1, 1)
        return Quantized(vectors.to(latents.dtype), ids.unflatten(0, grid), losses)

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, D, ...grid) -> ids int64 (B, ...grid(, codebooks))."""
        with torch.autocast(latents.device.type, enabled=False):
            rows = wide(latents).movedim(1, -1)
            return self.search(rows.reshape(-1, self.embed_dim)).unflatten(0, rows.shape[:-1])

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, ...grid(, codebooks)) -> code vectors (B, D, ...grid)."""
        return self.lookup(ids).movedim(-1, 1)


class DataStartedQuantizer(Quantizer):
    """Base of quantizers whose codes, or maps to them, start from the latents of the first quantized training batch."""

    starts_from_data = True
    statistics: tuple[str, ...] = ("initted",)
    initted: Tensor

    def __init__(self, embed_dim: int, codebook_sizes: tuple[int, ...]) -> None:
        super().__init__(embed_dim, codebook_sizes)
        self.register_buffer("initted", torch.tensor(False))

    @property
    def started(self) -> bool:
        return bool(self.initted)

    def start(self, rows: Tensor) -> None:
        """Set the codes by rows (N, D), in the same way on every rank; called once, without gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        if not self.started:
            self.start(rows)
            self.initted.fill_(True)

    def reset_statistics(self) -> None:
        self.initted.fill_(True)


def wide(latents: Tensor) -> Tensor:
    """The latents in float32, or in float64 where they are so already."""
    return latents if latents.dtype == torch.float64 else latents.float()
