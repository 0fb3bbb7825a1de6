"""Pictures to pixels and back: the edge at which PIL images and uint8 arrays become [-1, 1] tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


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


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB copy of a picture of any mode; the first frame of an animated one.

    Raises:
        ValueError: the picture is empty or its file cannot be read to its end.
    """
    if 0 in image.size:
        raise ValueError(f"a picture of {image.size[0]}x{image.size[1]} pixels is empty")
    try:
        image = ImageOps.exif_transpose(image)
    except OSError as error:
        raise ValueError(f"the picture cannot be read to its end: {error}") from error
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        image = _sixteen_bit_to_eight(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _sixteen_bit_to_eight(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    scale = 255.0 / 65535.0 if values.max(initial=0.0) > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


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
