"""A codebook that follows the latents by moving averages (EMA), its start by k-means, and codes that nothing uses.

The moving averages are those of vector-quantize-pytorch's `Codebook`: its state and its arithmetic, which a test holds
against the library. The class is written out here, since the library takes longer to load than a folder of pictures takes
to become tokens. What it does through tables of (vectors, codes) (distances, an int64 one-hot, the one-hot product) is
done by `nearest_code` and `index_add_`, so that 32,768 codes and more cost no table. And what bites in training is
settled here: the k-means start happens on a training step only, dead codes are judged against the mean use (an absolute
threshold kills every code when there are more codes than vectors), ranks agree whenever the process group was made, and
random choices are a function of the number of updates, so that a resumed run draws the same ones.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from emu_kernels import nearest_code
from emu_tokenizers.distributed import num_ranks, sum_over_ranks

START_COUNT = 8.0
"""Use that a codebook without statistics starts with: enough steps to show which codes are alive."""
SMOOTHING = 1e-5
"""Rows that each code is given in addition when sums are divided by numbers."""


def cluster_sums(rows: Tensor, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number (K,) and sum (K, D) of the rows (N, D) of each code, over all ranks."""
    packed = rows.new_zeros(size, rows.shape[1] + 1)  # one tensor, one exchange
    packed.index_add_(0, ids, F.pad(rows, (0, 1), value=1.0))
    sum_over_ranks(packed)
    return packed[:, -1], packed[:, :-1]


def draw_rows(rows: Tensor, number: int, seed: int) -> Tensor:
    """Rows (number, D) drawn from (N, D), without replacement where there are enough; a function of the seed, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    count = rows.shape[0]
    if count >= number:
        choice = torch.randperm(count, generator=generator)[:number]
    else:
        choice = torch.randint(count, (number,), generator=generator)
    drawn = rows[choice.to(rows.device)].contiguous()
    if num_ranks() > 1:  # each rank has other rows at the same places
        dist.broadcast(drawn, src=0)
    return drawn


def k_means(rows: Tensor, size: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means (K, D) of the rows (N, D) of all ranks, and of each mean's rows the number (K,) and the sum (K, D)."""
    means = draw_rows(rows, size, seed)
    for _ in range(rounds):
        count, total = cluster_sums(rows, nearest_code(rows, means), size)
        # A mean that lost all its rows stays where it is: it may win some back in the next round.
        means = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], means)
    return means, *cluster_sums(rows, nearest_code(rows, means), size)


def move_dead(codes: Tensor, use: Tensor, rows: Tensor, ratio: float, seed: int) -> Tensor:
    """Move codes (K, D) whose use (K,) is less than a share of the mean use onto rows (N, D), with the mean use, in place.

    Returns:
        The codes that moved: the least used ones, at most one for each row.
    """
    mean_use = use.mean()
    dead = (use < ratio * mean_use).nonzero()[:, 0]
    dead = dead[use[dead].argsort(stable=True)][: len(rows)]
    if len(dead):
        codes[dead] = draw_rows(rows, len(dead), seed).to(codes.dtype)
        use[dead] = mean_use  # with the use that they had, they would be dead again in the next step
    return dead


def check_shares(**shares: float) -> None:
    """Raise ValueError for a share outside [0, 1)."""
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong:
        given = ", ".join(f"{name} is {share}" for name, share in wrong.items())
        raise ValueError(f"{given}; expected a share in [0, 1)")


def check_rounds(kmeans_iters: int) -> None:
    """Raise ValueError for a negative number of rounds."""
    if kmeans_iters < 0:
        raise ValueError(f"kmeans_iters is {kmeans_iters}; expected at least 0")


class EmaCodebook(nn.Module):
    """One codebook of K codes, for rows (N, D).

    Attributes:
        embed: the codes, (1, K, D).
        cluster_size, embed_avg: moving averages of the number (1, K) and of the sum (1, K, D) of each code's rows.
        initted: whether the codes come from data.
        num_updates: steps of the averages so far.
    """

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    initted: Tensor
    num_updates: Tensor

    def __init__(self, dim: int, size: int, decay: float, dead_code_ratio: float, kmeans_iters: int) -> None:
        super().__init__()
        self.codebook_size, self.decay = size, decay
        self.dead_code_ratio, self.kmeans_iters = dead_code_ratio, kmeans_iters
        embed = nn.init.kaiming_uniform_(torch.empty(1, size, dim))
        self.register_buffer("initted", torch.tensor(kmeans_iters == 0))
        self.register_buffer("cluster_size", torch.ones(1, size))
        self.register_buffer("embed_avg", embed.clone())
        self.register_buffer("embed", embed)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Give every code the same use, with moving averages that stand for the codes as they are."""
        self.cluster_size.fill_(START_COUNT)
        self.embed_avg.copy_(self.embed * START_COUNT)

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """k-means on the rows (N, D) of a training batch (of all ranks)."""
        means, count, total = k_means(rows, self.codebook_size, self.kmeans_iters, int(self.num_updates))
        self.embed.copy_(means)
        self.cluster_size.copy_(count)
        self.embed_avg.copy_(total)
        self.replace_dead(rows)
        self.initted.fill_(True)

    @torch.no_grad()
    def update(self, rows: Tensor, ids: Tensor) -> None:
        """One step of the moving averages with rows (N, D) and their ids (N,), then the reset of dead codes."""
        count, total = cluster_sums(rows, ids, self.codebook_size)
        self.cluster_size.lerp_(count.to(self.cluster_size)[None], 1 - self.decay)
        self.embed_avg.lerp_(total.to(self.embed_avg)[None], 1 - self.decay)
        # Laplace smoothing keeps codes without rows from being divided by zero.
        total_size = self.cluster_size.sum(dim=-1, keepdim=True)
        smoothed = (self.cluster_size + SMOOTHING) / (total_size + self.codebook_size * SMOOTHING)
        self.embed.copy_(self.embed_avg / (smoothed * total_size)[..., None])
        self.replace_dead(rows)
        self.num_updates += 1

    def replace_dead(self, rows: Tensor) -> None:
        """Move codes that are used far less than the mean onto rows of this batch, at most one code per row."""
        if self.dead_code_ratio == 0:
            return
        codes, use = self.embed[0], self.cluster_size[0]
        dead = move_dead(codes, use, rows, self.dead_code_ratio, int(self.num_updates))
        self.embed_avg[0, dead] = codes[dead] * use[dead, None]
