"""Quantizers without a learnt table: FSQ, LFQ and BSQ, over the modules of vector-quantize-pytorch.

The library's modules hold the projections and the map between codes and ids. What differs here: the projections start from
data, ids are int64 (FSQ's are int32), the entropy of LFQ builds no table of (vectors, codes) for large codebooks and is
averaged over ranks by the value that the exchange returns, and the spherical map can be pickled.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.distributed import mean_over_ranks, num_ranks
from emu_tokenizers.quantizers.base import DataStartedQuantizer, straight_through

JOINT_CODES = 1 << 12
"""Largest codebook whose chances are tabulated, (vectors, codes), for the entropy of the batch."""


class ProjectedQuantizer(DataStartedQuantizer):
    """Base of quantizers that see the latents through a linear map, and give them back through another.

    Latents of a trained autoencoder are far from what these quantizers want: a few directions hold nearly all of the
    variance, so that random projections see one direction over and over and most codes never occur. The maps therefore
    start from the first quantized training batch, as a table starts with k-means: the first is whitening followed by a
    rotation, the second the least squares map from codes back to latents. Both learn by gradients from there on. Where
    there is no map, because the widths agree, nothing is started.
    """

    spread: float = 1.0
    """Standard deviation of each channel after the start."""

    def projections(self) -> tuple[nn.Module, nn.Module]:
        """The maps from latents and to them."""
        raise NotImplementedError

    def code_values(self, rows: Tensor) -> Tensor:
        """What the second map sees of rows (N, D)."""
        raise NotImplementedError

    def start(self, rows: Tensor) -> None:
        """Whiten rows (N, D) by the first map, and fit the second to bring codes back to them."""
        first, last = self.projections()
        if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)):
            return
        weight, bias = whitening(rows.double(), first.out_features)
        first.weight.copy_(self.spread * weight)
        first.bias.copy_(self.spread * bias)
        values = F.pad(self.code_values(rows.to(first.weight.dtype)).double(), (0, 1), value=1.0)
        square = values.T @ values
        square.diagonal().add_(1e-6 * square.diagonal().mean())
        solved = torch.linalg.solve(square, values.T @ rows.double())  # (k + 1, D)
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])
        if num_ranks() > 1:
            for tensor in (first.weight, first.bias, last.weight, last.bias):
                dist.broadcast(tensor, src=0)


def whitening(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (k, D) and bias (k,) that bring rows (N, D) to k channels of mean 0 and variance 1, as far as they differ.

    Fewer channels than the rows are wide hold the directions of largest variance; more of them are a tight frame.
    """
    mean = rows.mean(0)
    variance, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))  # ascending
    kept = min(channels, rows.shape[1])
    variance, directions = variance[-kept:], directions[:, -kept:]
    white = (directions / variance.clamp(min=1e-4 * float(variance[-1]) + 1e-12).sqrt()).T  # (kept, D)
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(channels, kept, dtype=rows.dtype, generator=generator))[0].to(rows.device)
    weight = (channels / kept) ** 0.5 * frame @ white
    return weight, -weight @ mean


class ScalarQuantizer(ProjectedQuantizer):
    """Finite scalar quantization: every channel is bounded and rounded to a few levels (arXiv 2309.15505).

    Args:
        embed_dim: width of the latents; projected to one channel per level where the two differ.
        codebook_size: must be the product of `levels`.
        levels: number of values of each channel, at least 2 each.
    """

    loss_weights = {}
    spread = 0.8  # the hyperbolic tangent of such a normal variable is nearly uniform

    def __init__(self, embed_dim: int, codebook_size: int, *, levels: tuple[int, ...] | list[int]) -> None:
        if not levels or min(levels) < 2 or math.prod(levels) != codebook_size:
            raise ValueError(
                f"levels is {tuple(levels)}; expected numbers of at least 2 that multiply to codebook_size {codebook_size}"
            )
        super().__init__(embed_dim, (codebook_size,))
        from vector_quantize_pytorch import FSQ  # loaded by the quantizers that need it: it takes a second and a half

        self.fsq = FSQ(list(levels), dim=embed_dim, preserve_symmetry=2 in levels)

    def projections(self) -> tuple[nn.Module, nn.Module]:
        """The maps of the library's module; the identity where widths agree."""
        return self.fsq.project_in, self.fsq.project_out

    def code_values(self, rows: Tensor) -> Tensor:
        """Rounded channels (N, levels)."""
        return self.fsq.quantize(self.fsq.project_in(rows))

    def search(self, rows: Tensor) -> Tensor:
        """Mixed-radix numbers of the rounded channels: (N, D) -> (N,)."""
        return self.fsq.codes_to_indices(self.fsq.quantize(self.fsq.project_in(rows))).long()

    def lookup(self, ids: Tensor) -> Tensor:
        """Levels of a number, mapped back: (...) -> (..., D)."""
        codes = self.fsq._indices_to_codes(ids)
        return self.fsq.project_out(codes.to(self.fsq.implicit_codebook.dtype))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of rounding as if it were the identity; no loss is needed."""
        path = self.fsq.project_out(self.fsq.quantize(self.fsq.project_in(rows)))
        return straight_through(path, vectors), {}


class BinaryQuantizer(ProjectedQuantizer):
    """Lookup-free quantization: the signs of the channels are the bits of the id (LFQ, arXiv 2310.05737).

    Args:
        embed_dim: width of the latents; projected to one channel per bit where the two differ.
        codebook_size: a power of two.
        num_codebooks: codebooks of that size, side by side.
        spherical: latents and codes lie on the unit sphere (BSQ, arXiv 2406.07548).
        inverse_temperature: how sharply a channel decides its bit in the entropy loss.
        diversity: weight of the batch's entropy against the single vector's.
    """

    loss_weights = {"commitment": 0.25, "entropy": 0.02}

    def __init__(
        self,
        embed_dim: int,
        codebook_size: int,
        *,
        num_codebooks: int = 1,
        spherical: bool = False,
        inverse_temperature: float = 10.0,
        diversity: float = 1.0,
    ) -> None:
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size is {codebook_size}; LFQ and BSQ need a power of two of at least 2")
        super().__init__(embed_dim, (codebook_size,) * num_codebooks)
        from vector_quantize_pytorch import LFQ  # as above

        self.lfq = LFQ(dim=embed_dim, codebook_size=codebook_size, num_codebooks=num_codebooks, spherical=spherical)
        if spherical:
            self.lfq.maybe_l2norm = partial(F.normalize, dim=-1)
        self.inverse_temperature = inverse_temperature
        self.diversity = diversity

    def projections(self) -> tuple[nn.Module, nn.Module]:
        """The maps of the library's module; the identity where widths agree."""
        return self.lfq.project_in, self.lfq.project_out

    def code_values(self, rows: Tensor) -> Tensor:
        """Signs of the channels, (N, codebooks * bits)."""
        return self.codes(self.search(rows)).flatten(-2)

    def channels(self, rows: Tensor) -> Tensor:
        """Rows (N, D) -> (N, codebooks, bits) whose signs are the code."""
        projected = self.lfq.project_in(rows).unflatten(-1, (len(self.codebook_sizes), -1))
        return self.lfq.maybe_l2norm(projected)

    def search(self, rows: Tensor) -> Tensor:
        """Signs of the channels read as bits: (N, D) -> (N,), or (N, codebooks)."""
        ids = ((self.channels(rows) > 0).long() * self.lfq.mask).sum(-1)
        return ids[..., 0] if len(self.codebook_sizes) == 1 else ids

    def codes(self, ids: Tensor) -> Tensor:
        """Ids (...) -> codes (..., codebooks, bits) of -1 and 1, or of unit length for BSQ."""
        ids = ids[..., None] if len(self.codebook_sizes) == 1 else ids
        bits = (ids[..., None] & self.lfq.mask) != 0
        return self.lfq.maybe_l2norm(self.lfq.bits_to_codes(bits.to(self.lfq.codebook.dtype)))

    def lookup(self, ids: Tensor) -> Tensor:
        """Signs of the bits, mapped back: (...) -> (..., D)."""
        return self.lfq.project_out(self.codes(ids).flatten(-2))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Straight-through gradient to the channels, commitment and entropy."""
        channels, codes = self.channels(rows), self.codes(ids)
        path = self.lfq.project_out(straight_through(channels, codes).flatten(-2))
        losses = {"commitment": F.mse_loss(channels, codes), "entropy": self.entropy(channels, codes)}
        return straight_through(path, vectors), losses

    def entropy(self, channels: Tensor, codes: Tensor) -> Tensor:
        """Entropy of single vectors minus that of the batch, in nats per codebook.

        A softmax over codes of -distance factorises over bits, so that the first term is exact. The second is exact up
        to `JOINT_CODES` codes: bits may each be balanced and still all be equal, which only the chances of whole codes
        show. Beyond, it is the independent-bits bound of arXiv 2406.07548, section 4.
        """
        step = codes.detach().abs().mean()
        chance = torch.sigmoid(4 * self.inverse_temperature * step * channels)  # (N, codebooks, bits)
        single = bit_entropy(chance).sum(-1).mean()
        if self.codebook_sizes[0] > JOINT_CODES:
            batch = bit_entropy(mean_over_ranks(chance.mean(0))).sum(-1).mean()
        else:
            joint = mean_over_ranks(self.joint_chance(chance))
            batch = -(joint * joint.clamp(min=1e-10).log()).sum(-1).mean()
        return single - self.diversity * batch

    def joint_chance(self, chance: Tensor) -> Tensor:
        """Mean chance of each code, (codebooks, K), of bits that are one with chances (N, codebooks, bits)."""
        numbers = torch.arange(self.codebook_sizes[0], device=chance.device)
        ones = ((numbers[:, None] & self.lfq.mask) != 0).to(chance.dtype)  # (K, bits)
        chance = chance.clamp(1e-6, 1 - 1e-6)
        return (chance.log() @ ones.T + (1 - chance).log() @ (1 - ones).T).exp().mean(0)


def bit_entropy(chance: Tensor) -> Tensor:
    """Entropy in nats of bits that are one with the given chance."""
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())
