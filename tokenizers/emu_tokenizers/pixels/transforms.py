"""Pictures to pixels and back: the edge at which PIL images and uint8 arrays become [-1, 1] tensors."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 1 << 27
"""Largest picture that `open_image` reads: about 11,600 x 11,600 pixels."""


class BadPicture(ValueError):
    """A picture or clip that cannot be used.

    Attributes:
        reason: why, in few words, to count by: "no picture", "empty", "too large", "damaged".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


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
        raise BadPicture("empty", f"a picture of {image.size[0]}x{image.size[1]} pixels is empty")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, struct.error) as error:  # Pillow's readers raise these on damaged files
        raise BadPicture("damaged", f"the picture cannot be read to its end: {error}") from error
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


@contextmanager
def opened_image(source: str | os.PathLike | bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """A picture as Pillow opens it: its header is read and its size checked, nothing is decoded yet.

    Args:
        source: a file, or the bytes of one.
        name: what messages call it.
        max_pixels: largest width times height.

    Raises:
        BadPicture: it is no picture or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError as error:
        raise BadPicture("no picture", f"{name} is no picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise BadPicture("too large", f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, struct.error, ValueError) as error:  # headers that end too early
        raise BadPicture("damaged", f"{name} cannot be read: {error}") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadPicture("too large", f"{name} has {width}x{height} pixels, more than {max_pixels} allowed")
        yield image


def open_image(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """An upright RGB picture from a file.

    Args:
        source: a file in any format that Pillow reads, or the bytes of one; of an animated one, the first frame.
        max_pixels: largest width times height; checked against the header, before anything is decoded.
        name: what messages call it, its path where none is given.

    Raises:
        FileNotFoundError: there is no such file.
        BadPicture: a ValueError; it is no picture, is larger than `max_pixels`, is empty, or is damaged.
    """
    if not isinstance(source, bytes):
        source = Path(source)
        if not source.is_file():
            raise FileNotFoundError(f"there is no file {source}")
    name = name or ("a picture" if isinstance(source, bytes) else str(source))
    with opened_image(source, name, max_pixels) as image:
        try:
            return to_rgb(image)
        except BadPicture as error:
            raise BadPicture(error.reason, f"{name}: {error}") from error


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
