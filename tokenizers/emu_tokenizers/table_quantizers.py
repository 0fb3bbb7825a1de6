"""Quantizers whose codebook learns by gradients: SimVQ and IBQ."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import SimVQ

from emu_kernels import nearest_code
from emu_tokenizers.quantizers import Quantizer, straight_through
from emu_tokenizers.scalar_quantizers import mean_over_ranks
from emu_tokenizers.vq import num_ranks

TABLE_ENTRIES = 1 << 22
"""Entries of the (vectors, codes) table that IBQ holds at once."""


class SimQuantizer(Quantizer):
    """SimVQ: a frozen random codebook seen through one learnt linear map, so that all codes move (arXiv 2411.02038)."""

    loss_names = ("commitment", "codebook")

    def __init__(self, embed_dim: int, codebook_size: int) -> None:
        super().__init__(embed_dim, (codebook_size,))
        self.sim = SimVQ(embed_dim, codebook_size, rotation_trick=False)

    @property
    def weight(self) -> Tensor:
        """The codes, [K, D]."""
        return self.sim.codebook

    def search(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.weight.detach().to(rows.dtype))

    def lookup(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        losses = {
            "commitment": F.mse_loss(rows, vectors.detach()),
            "codebook": F.mse_loss(vectors, rows.detach()),
        }
        return straight_through(rows, vectors), losses


class IndexQuantizer(Quantizer):
    """IBQ: the index is the largest product with a code, and its gradient is that of a softmax over all codes.

    Source: arXiv 2412.02692, section 3.2. The tables of that softmax are made and remade in chunks of vectors, so that
    memory does not grow with (vectors x codes).

    The codes start as latents of the first quantized training batch, brought to one length: of codes of unequal length, or
    of tiny random ones, the few that lie along the latents' mean take every vector.

    Args:
        embed_dim: width of a code vector.
        codebook_size: number of codes.
        normalize: products of unit vectors.
        temperature: of the softmax in the entropy loss.
        entropy: whether to compute the entropy loss at all; it costs another softmax.
    """

    starts_from_data = True
    initted: Tensor

    def __init__(
        self,
        embed_dim: int,
        codebook_size: int,
        *,
        normalize: bool = False,
        temperature: float = 0.01,
        entropy: bool = False,
    ) -> None:
        super().__init__(embed_dim, (codebook_size,))
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self.register_buffer("initted", torch.tensor(False))
        self.normalize, self.temperature, self.entropy = normalize, temperature, entropy
        self.loss_names = ("commitment", "codebook", "index") + (("entropy",) if entropy else ())

    @property
    def started(self) -> bool:
        return bool(self.initted)

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        if self.started:
            return
        self.initted.fill_(True)
        size, count = self.codebook_sizes[0], len(rows)
        generator = torch.Generator().manual_seed(0)
        choice = torch.randperm(count, generator=generator)[:size]
        if count < size:
            choice = torch.cat((choice, torch.randint(count, (size - count,), generator=generator)))
        length = rows.norm(dim=1).mean()
        codes = F.normalize(rows[choice.to(rows.device)], dim=1) * length
        if num_ranks() > 1:
            dist.broadcast(codes, src=0)
        self.embedding.weight.copy_(codes)

    def logits(self, rows: Tensor) -> Tensor:
        """Products of rows [n, D] with all codes, [n, K]."""
        weight = self.embedding.weight.to(rows.dtype)
        if self.normalize:
            rows, weight = F.normalize(rows, dim=-1), F.normalize(weight, dim=-1)
        return rows @ weight.T

    def chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows [N, D] in parts whose table of products stays small."""
        return rows.split(max(1, TABLE_ENTRIES // self.codebook_sizes[0]))

    @torch.no_grad()
    def search(self, rows: Tensor) -> Tensor:
        return torch.cat([self.logits(part).argmax(1) for part in self.chunks(rows)])

    def lookup(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def soft_codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean code under the softmax [n, D], and for the entropy loss the sum of entropies and of chances [K]."""
        logits = self.logits(rows)
        soft = logits.softmax(1) @ self.embedding.weight.detach().to(rows.dtype)
        if not self.entropy:
            return soft, rows.new_zeros(()), rows.new_zeros(1)
        log_chance = (logits / self.temperature).log_softmax(1)
        chance = log_chance.exp()
        return soft, -(chance * log_chance).sum(), chance.sum(0)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
