"""Vector quantization with a codebook that follows the latents by moving averages (EMA).

The moving averages are those of vector-quantize-pytorch's `Codebook`, whose state this module keeps and whose arithmetic
it inherits. What that class does through tables of [vectors, codes] (distances, an int64 one-hot, the one-hot product) is
done here by `nearest_code` and `index_add_`, so that 32,768 codes and more cost no table. And what bites in training is
settled here: the k-means start happens on a training step only, dead codes are judged against the mean use (an absolute
threshold kills every code when there are more codes than vectors), ranks agree whenever the process group was made, and
random choices are a function of the number of updates, so that a resumed run draws the same ones.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from emu_kernels import nearest_code
from emu_tokenizers.distributed import num_ranks, sum_over_ranks
from emu_tokenizers.quantizers.base import Quantizer, straight_through

START_COUNT = 8.0
"""Use that a codebook without statistics starts with: enough steps to show which codes are alive."""


def cluster_sums(rows: Tensor, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number [K] and sum [K, D] of the rows [N, D] of each code, over all ranks."""
    packed = rows.new_zeros(size, rows.shape[1] + 1)  # one tensor, one exchange
    packed.index_add_(0, ids, F.pad(rows, (0, 1), value=1.0))
    sum_over_ranks(packed)
    return packed[:, -1], packed[:, :-1]


def draw_rows(rows: Tensor, number: int, seed: int) -> Tensor:
    """Rows [number, D] of [N, D], without replacement where there are enough; a function of the seed, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    count = rows.shape[0]
    if count >= number:
        choice = torch.randperm(count, generator=generator)[:number]
    else:
        choice = torch.randint(count, (number,), generator=generator)
    drawn = rows[choice.to(rows.device)].contiguous()
    if num_ranks() > 1:
        dist.broadcast(drawn, src=0)
    return drawn


def k_means(rows: Tensor, size: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means [K, D] of the rows [N, D] of all ranks, and of each mean's rows the number [K] and the sum [K, D]."""
    means = draw_rows(rows, size, seed)
    for _ in range(rounds):
        count, total = cluster_sums(rows, nearest_code(rows, means), size)
        means = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], means)
    return means, *cluster_sums(rows, nearest_code(rows, means), size)


def move_dead(codes: Tensor, use: Tensor, rows: Tensor, ratio: float, seed: int) -> Tensor:
    """Moves codes [K, D] whose use [K] is less than a share of the mean use onto rows [N, D], with the mean use, in place.

    Returns:
        The codes that moved: the least used ones, at most one for each row.
    """
    mean_use = use.mean()
    dead = (use < ratio * mean_use).nonzero()[:, 0]
    dead = dead[use[dead].argsort(stable=True)][: len(rows)]
    if len(dead):
        codes[dead] = draw_rows(rows, len(dead), seed).to(codes.dtype)
        use[dead] = mean_use
    return dead


def check_shares(**shares: float) -> None:
    """Raises ValueError for a share outside [0, 1)."""
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong:
        raise ValueError(f"{' and '.join(wrong)} must lie in [0, 1), got {', '.join(map(str, wrong.values()))}")


def check_rounds(kmeans_iters: int) -> None:
    """Raises ValueError for a negative number of rounds."""
    if kmeans_iters < 0:
        raise ValueError(f"kmeans_iters must be at least 0, got {kmeans_iters}")


class EmaCodebook(Codebook):
    """The library's codebook without its tables: [N, D] rows, one codebook of K codes."""

    def __init__(self, dim: int, size: int, decay: float, dead_code_ratio: float, kmeans_iters: int) -> None:
        super().__init__(dim=dim, codebook_size=size, decay=decay, threshold_ema_dead_code=0, kmeans_init=False)
        self.dead_code_ratio = dead_code_ratio
        self.kmeans_iters = kmeans_iters
        self.initted.fill_(kmeans_iters == 0)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Gives every code the same use, with moving averages that stand for the codes as they are."""
        self.cluster_size.fill_(START_COUNT)
        self.embed_avg.copy_(self.embed * START_COUNT)

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """k-means on the rows [N, D] of a training batch (of all ranks)."""
        means, count, total = k_means(rows, self.codebook_size, self.kmeans_iters, int(self.num_updates))
        self.embed.copy_(means)
        self.cluster_size.copy_(count)
        self.embed_avg.copy_(total)
        self.replace_dead(rows)
        self.initted.fill_(True)

    @torch.no_grad()
    def update(self, rows: Tensor, ids: Tensor) -> None:
        """One step of the moving averages with rows [N, D] and their ids [N], then the reset of dead codes."""
        count, total = cluster_sums(rows, ids, self.codebook_size)
        self.cluster_size.lerp_(count.to(self.cluster_size)[None], 1 - self.decay)
        self.embed_avg.lerp_(total.to(self.embed_avg)[None], 1 - self.decay)
        self.update_ema()
        self.replace_dead(rows)
        self.num_updates += 1

    def replace_dead(self, rows: Tensor) -> None:
        """Moves codes that are used far less than the mean onto rows of this batch, at most one code per row."""
        if self.dead_code_ratio == 0:
            return
        codes, use = self.embed[0], self.cluster_size[0]
        dead = move_dead(codes, use, rows, self.dead_code_ratio, int(self.num_updates))
        self.embed_avg[0, dead] = codes[dead] * use[dead, None]


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
        """The codes, [K, D]."""
        return self.codebook.embed[0]

    def load_codes(self, codes: Tensor) -> None:
        """Sets the codes [K, D] and statistics that stand for them, so that training goes on from there."""
        self.codebook.embed.copy_(codes[None])
        self.reset_statistics()

    def reset_statistics(self) -> None:
        self.codebook.reset_statistics()
        self.codebook.initted.fill_(True)

    def search(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.weight.to(rows.dtype))

    def lookup(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    @property
    def started(self) -> bool:
        return bool(self.codebook.initted)

    def prepare(self, rows: Tensor) -> None:
        if not self.started:
            self.codebook.start(rows)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
        for book in self.each():
            book.reset_statistics()

    def inputs(self, rows: Tensor, vectors: list[Tensor]) -> Tensor:
        """What the next codebook sees, given rows [N, D] and the vectors of the codebooks before it."""
        raise NotImplementedError

    def join(self, vectors: list[Tensor]) -> Tensor:
        """The vectors of all codebooks as one, [..., D]."""
        raise NotImplementedError

    def search(self, rows: Tensor) -> Tensor:
        ids: list[Tensor] = []
        vectors: list[Tensor] = []
        for book in self.each():
            ids.append(book.search(self.inputs(rows, vectors)))
            vectors.append(book.lookup(ids[-1]))
        return torch.stack(ids, dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.join([book.lookup(part) for book, part in zip(self.each(), ids.unbind(-1), strict=True)])

    def prepare(self, rows: Tensor) -> None:
        vectors: list[Tensor] = []
        for book in self.each():
            part = self.inputs(rows, vectors)
            book.prepare(part)
            vectors.append(book.lookup(book.search(part)))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
        for vector in vectors:
            rows = rows - vector
        return rows

    def join(self, vectors: list[Tensor]) -> Tensor:
        return torch.stack(vectors).sum(0)


class MultiQuantizer(StackedQuantizer):
    """The channels fall into equal groups, each with a codebook of its own (arXiv 2502.20321, section 3.2)."""

    def __init__(self, embed_dim: int, codebook_size: int, *, num_codebooks: int = 2, **options: Any) -> None:
        if embed_dim % num_codebooks:
            raise ValueError(f"num_codebooks {num_codebooks} does not divide embed_dim {embed_dim}")
        width = embed_dim // num_codebooks
        super().__init__(embed_dim, [VectorQuantizer(width, codebook_size, **options) for _ in range(num_codebooks)])

    def inputs(self, rows: Tensor, vectors: list[Tensor]) -> Tensor:
        width = self.embed_dim // len(self.books)
        return rows[:, len(vectors) * width : (len(vectors) + 1) * width]

    def join(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, dim=-1)
