"""Pictures to pixels and back: the edge at which PIL images and uint8 arrays become [-1, 1] tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu_tokenizers.pixels.images import to_rgb


def to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """A picture as the vision tokenizer reads it.

    EXIF orientation is applied, transparency is laid over white, and every other mode is brought to RGB.

    Args:
        image: PIL image of any mode, or a uint8 array (H, W, 3).

    Returns:
        float32 (3, H, W) in [-1, 1].

    Raises:
        TypeError: neither an image nor a uint8 array.
        ValueError: an array of another shape, an empty picture, or a file that cannot be read to its end.
    """
    if isinstance(image, Image.Image):
        array = np.asarray(to_rgb(image))
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        array = image
    else:
        raise TypeError(f"a picture is a PIL image or a uint8 array (H, W, 3), got {type(image).__name__}")
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"a picture of shape {array.shape}; expected (H, W, 3) with at least one pixel")
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def to_frames(pixels: Tensor) -> np.ndarray:
    """Pixels as uint8, clamped and rounded to nearest.

    Args:
        pixels: floating point (..., 3, H, W) in [-1, 1]; values outside are clamped.

    Returns:
        uint8 array (..., H, W, 3).
    """
    scaled = (pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).movedim(-3, -1).contiguous().numpy()


def to_image(pixels: Tensor) -> Image.Image:
    """One picture (3, H, W) in [-1, 1] as a PIL image."""
    return Image.fromarray(to_frames(pixels))


def smart_size(
    height: int,
    width: int,
    factor: int = 8,
    min_pixels: int = 512 * 512,
    max_pixels: int = 1024 * 1024,
    max_ratio: float = 5.0,
) -> tuple[int, int]:
    """The size that Emu3 brings a picture to: multiples of the factor, an area within limits, the shape about kept.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        factor: the tokenizer's spatial factor.
        min_pixels: smallest area.
        max_pixels: largest area.
        max_ratio: largest ratio of the sides.

    Returns:
        Height and width.

    Raises:
        ValueError: a side below the factor, or sides in a ratio above `max_ratio`.

    Source: baaivision/Emu3, emu3/tokenizer/image_processing_emu3visionvq.py.
    """
    if min(height, width) < factor:
        raise ValueError(f"a picture of {width}x{height} pixels has a side below the factor {factor}")
    if max(height, width) / min(height, width) > max_ratio:
        raise ValueError(f"a picture of {width}x{height} pixels is longer than {max_ratio} times its width")
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height, new_width = (max(factor, int(side / scale / factor) * factor) for side in (height, width))
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return new_height, new_width


def smart_resize(image: Image.Image, factor: int = 8, **limits: float) -> Image.Image:
    """A picture at its `smart_size`, upright, RGB, resampled bicubically.

    Args:
        image: PIL image of any mode.
        factor: the tokenizer's spatial factor.
        limits: min_pixels, max_pixels, max_ratio of `smart_size`.

    Raises:
        ValueError: as `smart_size` and `to_rgb`.
    """
    image = to_rgb(image)
    height, width = smart_size(image.size[1], image.size[0], factor, **limits)  # type: ignore[arg-type]
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
