"""Quantizers whose codebook learns by gradients: SimVQ and IBQ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emu_kernels import nearest_code
from emu_tokenizers.distributed import mean_over_ranks, sum_over_ranks
from emu_tokenizers.quantizers.base import DataStartedQuantizer, straight_through
from emu_tokenizers.quantizers.codebook import START_COUNT, check_rounds, check_shares, draw_rows, k_means, move_dead

TABLE_ENTRIES = 1 << 22
"""Entries of the (vectors, codes) table that IBQ holds at once."""


class SimQuantizer(DataStartedQuantizer):
    """SimVQ: a frozen codebook seen through one learnt linear map, so that all codes move (arXiv 2411.02038).

    The frozen codes are random until training starts them from latents by k-means, with the identity as the map: far from
    the latents, most random codes are nearest to none of them, and one map cannot bring them all there.

    Args:
        embed_dim: width of a code vector.
        codebook_size: number of codes.
        kmeans_iters: rounds of k-means on the first quantized training batch; 0 keeps the random codes.
    """

    loss_weights = {"commitment": 0.25, "codebook": 1.0}

    def __init__(self, embed_dim: int, codebook_size: int, *, kmeans_iters: int = 10) -> None:
        super().__init__(embed_dim, (codebook_size,))
        check_rounds(kmeans_iters)
        self.kmeans_iters = kmeans_iters
        self.initted.fill_(kmeans_iters == 0)
        from vector_quantize_pytorch import (
            SimVQ,  # takes a second and a half to load, which only this quantizer has to pay
        )

        self.sim = SimVQ(embed_dim, codebook_size, rotation_trick=False)

    def start(self, rows: Tensor) -> None:
        """Freeze the means of the rows (N, D), seen through the identity."""
        means, _, _ = k_means(rows, self.codebook_sizes[0], self.kmeans_iters, seed=0)
        self.sim.frozen_codebook.copy_(means)
        nn.init.eye_(self.sim.code_transform.weight)

    @property
    def weight(self) -> Tensor:
        """The codes, (K, D)."""
        return self.sim.codebook

    def search(self, rows: Tensor) -> Tensor:
        """Codes nearest in Euclidean distance: (N, D) -> (N,)."""
        return nearest_code(rows, self.weight.detach().to(rows.dtype))

    def lookup(self, ids: Tensor) -> Tensor:
        """Mapped codes: (...) -> (..., D)."""
        return F.embedding(ids, self.weight)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Straight-through gradient; the codebook loss moves the map, and with it all codes."""
        losses = {
            "commitment": F.mse_loss(rows, vectors.detach()),
            "codebook": F.mse_loss(vectors, rows.detach()),
        }
        return straight_through(rows, vectors), losses


class IndexQuantizer(DataStartedQuantizer):
    """IBQ: the index is the largest product with a code, and its gradient is that of a softmax over all codes.

    Source: arXiv 2412.02692, section 3.2. The tables of that softmax are made and remade in chunks of vectors, so that
    memory does not grow with (vectors x codes).

    Trained from nothing, the plain form keeps a handful of codes: latents share a large mean, and the longest codes along
    it take them all. Three things keep codes in use. They start as latents of the first quantized training batch, brought to
    one length. Products are cosines, over a temperature without which the softmax would be flat. And codes that are hardly
    used move onto latents, as those of a table that follows moving averages do. Released tokenizers (Emu3.5) are of the
    plain form: `normalize=False, entropy=False, dead_code_ratio=0`.

    Args:
        embed_dim: width of a code vector.
        codebook_size: number of codes.
        normalize: products of unit vectors, divided by `temperature`.
        temperature: of the softmax in the entropy loss, and of that over cosines.
        entropy: whether to compute the entropy loss at all; it costs another softmax.
        decay: decay of the moving average of each code's use.
        dead_code_ratio: a code used less than this share of the mean use moves onto a latent of the batch; 0 never.
    """

    loss_weights = {"commitment": 0.25, "codebook": 1.0, "index": 0.25, "entropy": 0.02}
    statistics = ("initted", "cluster_size", "num_updates")
    cluster_size: Tensor
    num_updates: Tensor

    def __init__(
        self,
        embed_dim: int,
        codebook_size: int,
        *,
        normalize: bool = True,
        temperature: float = 0.01,
        entropy: bool = True,
        decay: float = 0.95,
        dead_code_ratio: float = 0.1,
    ) -> None:
        super().__init__(embed_dim, (codebook_size,))
        check_shares(decay=decay, dead_code_ratio=dead_code_ratio)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self.register_buffer("cluster_size", torch.full((codebook_size,), START_COUNT))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.normalize, self.temperature, self.entropy = normalize, temperature, entropy
        self.decay, self.dead_code_ratio = decay, dead_code_ratio
        if not entropy:
            self.loss_weights = {name: weight for name, weight in self.loss_weights.items() if name != "entropy"}

    def start(self, rows: Tensor) -> None:
        """Take rows of (N, D) as codes, all of their mean length."""
        drawn = draw_rows(rows, self.codebook_sizes[0], seed=0)
        self.embedding.weight.copy_(F.normalize(drawn, dim=1) * drawn.norm(dim=1).mean())

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        """Start the codes once, then move those that are hardly used onto rows (N, D)."""
        if not self.started or not self.dead_code_ratio:
            super().prepare(rows)
            return
        move_dead(self.embedding.weight, self.cluster_size, rows, self.dead_code_ratio, int(self.num_updates))

    @torch.no_grad()
    def count(self, ids: Tensor) -> None:
        """Move the average use of the codes by the ids (N,) of a step."""
        count = torch.bincount(ids, minlength=len(self.cluster_size)).to(self.cluster_size)
        sum_over_ranks(count)
        self.cluster_size.lerp_(count, 1 - self.decay)
        self.num_updates += 1

    def logits(self, rows: Tensor) -> Tensor:
        """Products of rows (n, D) with all codes, (n, K)."""
        weight = self.embedding.weight.to(rows.dtype)
        if self.normalize:
            rows, weight = F.normalize(rows, dim=-1) / self.temperature, F.normalize(weight, dim=-1)
        return rows @ weight.T

    def chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows (N, D) in parts whose table of products stays small."""
        return rows.split(max(1, TABLE_ENTRIES // self.codebook_sizes[0]))

    @torch.no_grad()
    def search(self, rows: Tensor) -> Tensor:
        """Codes of the largest product: (N, D) -> (N,)."""
        return torch.cat([self.logits(part).argmax(1) for part in self.chunks(rows)])

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the table: (...) -> (..., D)."""
        return self.embedding(ids)

    def soft_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean code under the softmax (n, D), and for the entropy loss the sum of entropies and of chances (K,)."""
        logits = self.logits(rows)
        soft = logits.softmax(1) @ self.embedding.weight.detach().to(rows.dtype)
        if not self.entropy:
            return soft, rows.new_zeros(()), rows.new_zeros(1)
        log_chance = (logits if self.normalize else logits / self.temperature).log_softmax(1)
        chance = log_chance.exp()
        return soft, -(chance * log_chance).sum(), chance.sum(0)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The chosen codes with the gradient of the softmax over all codes, and the losses."""
        if self.training:
            self.count(ids)
        parts = [checkpoint(self.soft_codes, part, use_reentrant=False) for part in self.chunks(rows)]
        soft = torch.cat([part[0] for part in parts])
        path = vectors + (soft - soft.detach())  # the chosen code, and through the softmax every code
        losses = {
            "commitment": F.mse_loss(rows, vectors.detach()),
            "codebook": F.mse_loss(vectors, rows.detach()),
            "index": F.mse_loss(path, rows),
        }
        if self.entropy:
            single = torch.stack([part[1] for part in parts]).sum() / len(rows)
            batch = mean_over_ranks(torch.stack([part[2] for part in parts]).sum(0) / len(rows))
            losses["entropy"] = single + (batch * batch.clamp(min=1e-10).log()).sum()
        return path, losses
