"""Pictures to pixels and back: the edge at which PIL images and uint8 arrays become [-1, 1] tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu_tokenizers.pixels.images import to_rgb


def from_bytes(levels: Tensor) -> Tensor:
    """Levels of 0 to 255, of any shape and device, as float32 pixels in [-1, 1]."""
    return levels.float() / 127.5 - 1.0


def to_bytes(pixels: Tensor) -> Tensor:
    """Floating point pixels in [-1, 1], of any shape and device, as uint8: clamped, and rounded to nearest."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


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
        raise TypeError(f"the picture is {type(image).__name__}; expected a PIL image or a uint8 array (H, W, 3)")
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"the picture has shape {array.shape}; expected (H, W, 3) with at least one pixel")
    return from_bytes(torch.from_numpy(array.copy()).permute(2, 0, 1))


def to_frames(pixels: Tensor) -> np.ndarray:
    """Pixels as an array of pictures, see `to_bytes`.

    Args:
        pixels: floating point (..., 3, H, W) in [-1, 1]; values outside are clamped.

    Returns:
        uint8 array (..., H, W, 3).
    """
    return to_bytes(pixels.detach().cpu()).movedim(-3, -1).contiguous().numpy()


def to_image(pixels: Tensor) -> Image.Image:
    """One picture (3, H, W) in [-1, 1] as a PIL image."""
    return Image.fromarray(to_frames(pixels))
