"""Measures of a tokenizer: PSNR and SSIM of reconstructions, and how the codebook is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emu_tokenizers.pixels.transforms import to_bytes

MIN_SQUARED_ERROR = 1e-10
"""Floor of the squared error (100 dB), so that one perfect picture does not make a mean infinite."""


def psnr(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, both rounded to uint8 first.

    Args:
        reconstruction: pixels (..., 3, H, W) in [-1, 1].
        pixels: the originals, of the same shape.

    Returns:
        float32 (...).
    """
    difference = to_bytes(reconstruction).float() - to_bytes(pixels).float()
    error = (difference / 255).square().flatten(-3).mean(-1)
    return -10 * torch.log10(error.clamp(min=MIN_SQUARED_ERROR))


def ssim(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Structural similarity of each frame (11x11 Gaussian window), both rounded to uint8 first.

    Args:
        reconstruction: pixels (..., 3, H, W) in [-1, 1], sides of at least 11.
        pixels: the originals, of the same shape.

    Returns:
        float32, one value per frame: time is flattened, since SSIM of a clip is not a 3D measure here.

    Raises:
        ValueError: pictures smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(pixels.shape[-2:]) < 11:
        raise ValueError(f"the pictures are {pixels.shape[-2]}x{pixels.shape[-1]} pixels; SSIM needs at least 11x11")
    left, right = (to_bytes(x).float().flatten(0, -4) / 255 for x in (reconstruction, pixels))
    found = structural_similarity_index_measure(left, right, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True)
class CodebookUse:
    """How many codes were used, and how evenly.

    Attributes:
        use: share of the codes that were used at all.
        perplexity: exp of the entropy of the codes; the size of the codebook where all are used alike.
        dead: number of codes never used.
    """

    use: float
    perplexity: float
    dead: int


class CodeCounter:
    """Counts of codes over batches, one histogram per codebook."""

    def __init__(self, codebook_sizes: tuple[int, ...]) -> None:
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in codebook_sizes]

    def add(self, ids: Tensor) -> None:
        """Add codes of any shape, the last axis being the codebooks where there are several."""
        columns = [ids] if len(self.counts) == 1 else list(ids.unbind(-1))
        for index, column in enumerate(columns):
            size = len(self.counts[index])
            self.counts[index] += torch.bincount(column.flatten(), minlength=size).cpu()

    def measure(self) -> CodebookUse:
        """Use over all codebooks together; the perplexity is the mean over codebooks."""
        used = sum(int((counts > 0).sum()) for counts in self.counts)
        size = sum(len(counts) for counts in self.counts)
        perplexities = []
        for counts in self.counts:
            shares = counts[counts > 0].double() / max(int(counts.sum()), 1)
            perplexities.append(math.exp(-float((shares * shares.log()).sum())))
        return CodebookUse(used / size, sum(perplexities) / len(perplexities), size - used)
