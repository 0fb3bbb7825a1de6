"""Checks of what users hand to the vision tokenizer, before any work starts."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_tokenizers.vision.config import VisionTokenizerConfig


def check_pixels(pixels: Tensor, config: VisionTokenizerConfig, clip: bool | None = None) -> None:
    """Check that pixels are an image batch (B, 3, H, W) or a clip batch (B, T, 3, H, W) of finite floats.

    Args:
        pixels: what was given.
        config: the tokenizer's channels and factor.
        clip: True accepts clips only.

    Raises:
        TypeError: they are not a floating point tensor.
        ValueError: wrong shape, channels or size, or values that are not finite.
    """
    if not isinstance(pixels, Tensor):
        raise TypeError(
            f"pixels are {type(pixels).__name__}; expected a torch tensor, see emu_tokenizers.pixels.transforms"
        )
    if not pixels.is_floating_point():
        raise TypeError(
            f"pixels are {pixels.dtype}; expected floating point in [-1, 1]; "
            "convert pictures with emu_tokenizers.pixels.transforms.to_pixels"
        )
    shape = tuple(pixels.shape)
    if pixels.ndim not in ((5,) if clip else (4, 5)):
        raise ValueError(f"pixels have shape {shape}; expected (B, 3, H, W) for images or (B, T, 3, H, W) for clips")
    if pixels.ndim == 5 and shape[1] == 0:
        raise ValueError(f"pixels have shape {shape}; expected clips of at least one frame")
    if shape[0] == 0:
        raise ValueError(f"pixels have shape {shape}, an empty batch; expected at least one picture")
    if shape[-3] != config.in_channels:
        raise ValueError(f"pixels have shape {shape}; expected {config.in_channels} channels before height and width")
    factor = config.spatial_factor
    if shape[-1] % factor or shape[-2] % factor or 0 in shape[-2:]:
        raise ValueError(
            f"pixels are {shape[-2]}x{shape[-1]}; expected height and width to be multiples of the spatial factor {factor}; "
            "resize or crop, for example with emu_tokenizers.pixels.resize.Resize"
        )
    if not torch.isfinite(pixels).all():
        raise ValueError("pixels hold NaN or infinite values")


def check_codes(codes: Tensor, codebook_sizes: tuple[int, ...]) -> bool:
    """Check that codes are a grid of the codebooks' ids.

    Args:
        codes: what was given: (B, h, w) or (B, t, h, w), with a last axis for several codebooks.
        codebook_sizes: number of codes of each codebook.

    Returns:
        Whether they are a clip.

    Raises:
        TypeError: they are not a tensor of integers.
        ValueError: wrong shape, or ids outside the codebooks.
    """
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        given = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes are {given}; expected a tensor of integers")
    shape = tuple(codes.shape)
    books = len(codebook_sizes)
    grid = shape if books == 1 else shape[:-1]
    if len(grid) not in (3, 4) or (books > 1 and shape[-1] != books):
        last = "" if books == 1 else f", each with a last axis of {books} codebooks"
        raise ValueError(f"codes have shape {shape}; expected (B, h, w) for images or (B, t, h, w) for clips{last}")
    if 0 in shape:
        raise ValueError(f"codes have shape {shape}, which is empty; expected at least one code")
    sizes = torch.tensor(codebook_sizes, device=codes.device)
    if books == 1:
        sizes = sizes[0]
    if (codes < 0).any() or (codes >= sizes).any():
        raise ValueError(
            f"codes are {int(codes.min())} to {int(codes.max())}; expected values in [0, {max(codebook_sizes)}); "
            "subtract the codebook's offset from token ids first"
        )
    return len(grid) == 4


def check_frames(codes: Tensor, frames: int | None, temporal_factor: int, is_clip: bool) -> int:
    """The number of frames to decode.

    Raises:
        ValueError: `frames` does not fit the codes.
    """
    if not is_clip:
        if frames not in (None, 1):
            raise ValueError(
                f"frames is {frames} for codes {tuple(codes.shape)} of images; expected None, or clips (B, t, h, w)"
            )
        return 1
    whole = codes.shape[1] * temporal_factor
    if frames is None:
        return whole
    if not whole - temporal_factor < frames <= whole:
        raise ValueError(
            f"frames is {frames}, the clip has {codes.shape[1]} latent frames of {temporal_factor} frames; "
            f"expected {whole - temporal_factor + 1} to {whole}"
        )
    return frames
