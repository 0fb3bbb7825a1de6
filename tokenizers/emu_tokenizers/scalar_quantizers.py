"""Quantizers without a learnt table: FSQ, LFQ and BSQ, over the modules of vector-quantize-pytorch.

The library's modules hold the projections and the map between codes and ids. What differs here: ids are int64 (FSQ's are
int32), the entropy of LFQ is taken bit by bit, so that no table of (vectors, codes) is built, and is averaged over ranks
by the value that the exchange returns; the spherical map can be pickled.
"""

import math
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import FSQ, LFQ

from emu_tokenizers.quantizers import Quantizer, straight_through


def same_value(vectors: Tensor, path: Tensor) -> Tensor:
    """`vectors` in value, bit for bit, with the gradient of `path`."""
    return straight_through(path, vectors)


class ScalarQuantizer(Quantizer):
    """Finite scalar quantization: every channel is bounded and rounded to a few levels (arXiv 2309.15505).

    Args:
        embed_dim: width of the latents; projected to one channel per level where the two differ.
        codebook_size: must be the product of `levels`.
        levels: number of values of each channel, at least 2 each.
    """

    loss_names = ()

    def __init__(self, embed_dim: int, codebook_size: int, *, levels: tuple[int, ...] | list[int]) -> None:
        if not levels or min(levels) < 2 or math.prod(levels) != codebook_size:
            raise ValueError(
                f"levels {tuple(levels)} must be at least 2 each and multiply to codebook_size {codebook_size}"
            )
        super().__init__(embed_dim, (codebook_size,))
        self.fsq = FSQ(list(levels), dim=embed_dim, preserve_symmetry=2 in levels)

    def search(self, rows: Tensor) -> Tensor:
        return self.fsq.codes_to_indices(self.fsq.quantize(self.fsq.project_in(rows))).long()

    def lookup(self, ids: Tensor) -> Tensor:
        codes = self.fsq._indices_to_codes(ids)
        return self.fsq.project_out(codes.to(self.fsq.implicit_codebook.dtype))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        path = self.fsq.project_out(self.fsq.quantize(self.fsq.project_in(rows)))
        return same_value(vectors, path), {}


class BinaryQuantizer(Quantizer):
    """Lookup-free quantization: the signs of the channels are the bits of the id (LFQ, arXiv 2310.05737).

    Args:
        embed_dim: width of the latents; projected to one channel per bit where the two differ.
        codebook_size: a power of two.
        num_codebooks: codebooks of that size, side by side.
        spherical: latents and codes lie on the unit sphere (BSQ, arXiv 2406.07548).
        inverse_temperature: how sharply a channel decides its bit in the entropy loss.
        diversity: weight of the batch's entropy against the single vector's.
    """

    loss_names = ("commitment", "entropy")

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
            raise ValueError(f"codebook_size must be a power of two of at least 2 for LFQ and BSQ, got {codebook_size}")
        super().__init__(embed_dim, (codebook_size,) * num_codebooks)
        self.lfq = LFQ(dim=embed_dim, codebook_size=codebook_size, num_codebooks=num_codebooks, spherical=spherical)
        if spherical:
            self.lfq.maybe_l2norm = partial(F.normalize, dim=-1)
        self.inverse_temperature = inverse_temperature
        self.diversity = diversity

    def channels(self, rows: Tensor) -> Tensor:
        """Rows [N, D] -> [N, codebooks, bits] whose signs are the code."""
        projected = self.lfq.project_in(rows).unflatten(-1, (len(self.codebook_sizes), -1))
        return self.lfq.maybe_l2norm(projected)

    def search(self, rows: Tensor) -> Tensor:
        ids = ((self.channels(rows) > 0).long() * self.lfq.mask).sum(-1)
        return ids[..., 0] if len(self.codebook_sizes) == 1 else ids

    def codes(self, ids: Tensor) -> Tensor:
        """Ids [...] -> codes [..., codebooks, bits] of -1 and 1, or of unit length for BSQ."""
        ids = ids[..., None] if len(self.codebook_sizes) == 1 else ids
        bits = (ids[..., None] & self.lfq.mask) != 0
        return self.lfq.maybe_l2norm(self.lfq.bits_to_codes(bits.to(self.lfq.codebook.dtype)))

    def lookup(self, ids: Tensor) -> Tensor:
        return self.lfq.project_out(self.codes(ids).flatten(-2))

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        channels, codes = self.channels(rows), self.codes(ids)
        path = self.lfq.project_out(straight_through(channels, codes).flatten(-2))
        losses = {"commitment": F.mse_loss(channels, codes), "entropy": self.entropy(channels, codes)}
        return same_value(vectors, path), losses

    def entropy(self, channels: Tensor, codes: Tensor) -> Tensor:
        """Entropy of single vectors minus that of the batch, in nats per codebook, bit by bit.

        A softmax over codes of -distance factorises over bits, so that the first term is exact; the second is the
        independent-bits bound of arXiv 2406.07548, section 4.
        """
        step = codes.detach().abs().mean()
        chance = torch.sigmoid(4 * self.inverse_temperature * step * channels)  # [N, codebooks, bits]
        single = bit_entropy(chance).sum(-1).mean()
        batch = bit_entropy(mean_over_ranks(chance.mean(0))).sum(-1).mean()
        return single - self.diversity * batch


def bit_entropy(chance: Tensor) -> Tensor:
    """Entropy in nats of bits that are one with the given chance."""
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean over the ranks of a process group, with gradients; the tensor itself without one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor) / dist.get_world_size()
