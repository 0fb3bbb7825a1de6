"""Vector quantization with codebooks learnt by moving averages: one, several that code what is left over, or one per group of channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu_kernels import nearest_code
from emu_tokenizers.quantizers.base import Quantizer, straight_through
from emu_tokenizers.quantizers.codebook import EmaCodebook, check_rounds, check_shares


class VectorQuantizer(Quantizer):
    """One codebook, nearest code in Euclidean distance, learnt by moving averages (arXiv 1711.00937, appendix A.1).

    Args:
        embed_dim: width of a code vector.
        codebook_size: number of codes.
        decay: decay of the moving averages.
        dead_code_ratio: a code used less than this share of the mean use moves onto a latent of the batch; 0 never.
        kmeans_iters: rounds of k-means on the first quantized training batch; 0 keeps the random start.
    """

    starts_from_data = True
    statistics = ("cluster_size", "embed_avg", "initted", "num_updates")

    def __init__(
        self,
        embed_dim: int,
        codebook_size: int,
        *,
        decay: float = 0.95,
        dead_code_ratio: float = 0.3,
        kmeans_iters: int = 10,
    ) -> None:
        super().__init__(embed_dim, (codebook_size,))
        check_shares(decay=decay, dead_code_ratio=dead_code_ratio)
        check_rounds(kmeans_iters)
        self.codebook = EmaCodebook(embed_dim, codebook_size, decay, dead_code_ratio, kmeans_iters)

    @property
    def weight(self) -> Tensor:
        """The codes, (K, D)."""
        return self.codebook.embed[0]

    def load_codes(self, codes: Tensor) -> None:
        """Set the codes (K, D) and statistics that stand for them, so that training goes on from there."""
        self.codebook.embed.copy_(codes[None])
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Give all codes the same use, and take them as started."""
        self.codebook.reset_statistics()
        self.codebook.initted.fill_(True)

    def search(self, rows: Tensor) -> Tensor:
        """Codes nearest in Euclidean distance: (N, D) -> (N,)."""
        return nearest_code(rows, self.weight.to(rows.dtype))

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the table: (...) -> (..., D)."""
        return F.embedding(ids, self.weight)

    @property
    def started(self) -> bool:
        return bool(self.codebook.initted)

    def prepare(self, rows: Tensor) -> None:
        """Start the codes by k-means on the first rows (N, D) of training."""
        if not self.started:
            self.codebook.start(rows)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Straight-through gradient and commitment; in training mode a step of the moving averages."""
        if self.training:
            self.codebook.update(rows.detach(), ids)
        return straight_through(rows, vectors), {"commitment": F.mse_loss(rows, vectors)}


class StackedQuantizer(Quantizer):
    """Base of quantizers made of several `VectorQuantizer`s; ids have a last axis for them."""

    starts_from_data = True
    statistics = VectorQuantizer.statistics

    def __init__(self, embed_dim: int, books: list[VectorQuantizer]) -> None:
        super().__init__(embed_dim, tuple(book.codebook_sizes[0] for book in books))
        self.books = nn.ModuleList(books)

    def each(self) -> list[VectorQuantizer]:
        """The codebooks, in order."""
        return [book for book in self.books if isinstance(book, VectorQuantizer)]

    @property
    def started(self) -> bool:
        return all(book.started for book in self.each())

    def reset_statistics(self) -> None:
        """Reset those of each codebook."""
        for book in self.each():
            book.reset_statistics()

    def inputs(self, rows: Tensor, vectors: list[Tensor]) -> Tensor:
        """What the next codebook sees, given rows (N, D) and the vectors of the codebooks before it."""
        raise NotImplementedError

    def join(self, vectors: list[Tensor]) -> Tensor:
        """The vectors of all codebooks as one, (..., D)."""
        raise NotImplementedError

    def search(self, rows: Tensor) -> Tensor:
        """Codes of each codebook, which sees those before it: (N, D) -> (N, codebooks)."""
        ids: list[Tensor] = []
        vectors: list[Tensor] = []
        for book in self.each():
            ids.append(book.search(self.inputs(rows, vectors)))
            vectors.append(book.lookup(ids[-1]))
        return torch.stack(ids, dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Joined vectors: (..., codebooks) -> (..., D)."""
        return self.join([book.lookup(part) for book, part in zip(self.each(), ids.unbind(-1), strict=True)])

    def prepare(self, rows: Tensor) -> None:
        """Start each codebook from what it will see."""
        vectors: list[Tensor] = []
        for book in self.each():
            part = self.inputs(rows, vectors)
            book.prepare(part)
            vectors.append(book.lookup(book.search(part)))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Straight-through gradient to the rows, and the mean of the commitments."""
        parts: list[Tensor] = []
        losses = []
        for book, column in zip(self.each(), ids.unbind(-1), strict=True):
            part = self.inputs(rows, parts)
            parts.append(book.lookup(column))
            losses.append(book.learn(part, column, parts[-1])[1]["commitment"])
        return straight_through(rows, vectors), {"commitment": torch.stack(losses).mean()}


class ResidualQuantizer(StackedQuantizer):
    """Each codebook codes what the ones before it left over (arXiv 2203.01941); the vectors add up."""

    def __init__(self, embed_dim: int, codebook_size: int, *, num_codebooks: int = 2, **options: Any) -> None:
        super().__init__(
            embed_dim, [VectorQuantizer(embed_dim, codebook_size, **options) for _ in range(num_codebooks)]
        )

    def inputs(self, rows: Tensor, vectors: list[Tensor]) -> Tensor:
        """What the vectors so far leave over of the rows (N, D)."""
        for vector in vectors:
            rows = rows - vector
        return rows

    def join(self, vectors: list[Tensor]) -> Tensor:
        """Their sum."""
        return torch.stack(vectors).sum(0)


class MultiQuantizer(StackedQuantizer):
    """The channels fall into equal groups, each with a codebook of its own (arXiv 2502.20321, section 3.2)."""

    def __init__(self, embed_dim: int, codebook_size: int, *, num_codebooks: int = 2, **options: Any) -> None:
        if embed_dim % num_codebooks:
            raise ValueError(f"num_codebooks is {num_codebooks}; expected a divisor of embed_dim {embed_dim}")
        width = embed_dim // num_codebooks
        super().__init__(embed_dim, [VectorQuantizer(width, codebook_size, **options) for _ in range(num_codebooks)])

    def inputs(self, rows: Tensor, vectors: list[Tensor]) -> Tensor:
        """The next group of channels, (N, D / codebooks)."""
        width = self.embed_dim // len(self.books)
        return rows[:, len(vectors) * width : (len(vectors) + 1) * width]

    def join(self, vectors: list[Tensor]) -> Tensor:
        """The groups side by side."""
        return torch.cat(vectors, dim=-1)
