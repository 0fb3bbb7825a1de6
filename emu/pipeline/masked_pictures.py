"""Pictures redrawn where a mask says: cells that it touches are generated, and pixels outside it stay unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu.data.tokenizing.picture_sizes import Sizing
from emu.documents import CodeSegment
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.edit_documents import as_picture
from emu.pipeline.requests import Size
from emu.pipeline.vision_work import cells_of, vision_threads
from emu_tokenizers.pixels.images import open_image, to_rgb

WHITE = 127
"""Grey values above it are white."""
TOUCHED = 8
"""Grey values above it are white in a mask that was made smaller, so that thin lines do not vanish."""


@dataclass(frozen=True)
class MaskedPicture:
    """A picture and the part of it to redraw.

    Attributes:
        pixels: uint8 (H, W, 3), as the vision tokenizer takes it.
        mask: bool (H, W), True where to redraw.
        segment: its codes, with the cells that the mask touches hidden; none if it touches nothing.
    """

    pixels: np.ndarray
    mask: np.ndarray
    segment: CodeSegment

    @classmethod
    def of(cls, picture: Any, mask: Any, tokenizer: MultimodalTokenizer, usual: Size | None) -> MaskedPicture:
        """Read a picture and its mask, resize both alike, and encode the picture.

        Args:
            picture: a PIL image, a path, or uint8 (H, W, 3).
            mask: of the picture's size, white or True where to redraw: a PIL image of mode "L" or "1", a path, or bool (H, W).
            tokenizer: with a vision tokenizer.
            usual: (height, width) to which pictures in files are resized, None for their own.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: anything else, a mask of another size, or a picture whose size the tokenizer rejects.
        """
        vision = tokenizer.vision
        if vision is None:
            raise ValueError("this model has no vision tokenizer, so it neither draws nor sees")
        image = as_picture(picture)
        if tokenizer.resize is None:  # in a model with a rule of its own, every picture goes that way
            is_file = isinstance(picture, str | os.PathLike)
            sized = Sizing(vision.spatial_factor, usual).picture if is_file else to_rgb
        else:
            sized = tokenizer.resize
        white = _read_mask(mask, (image.height, image.width))
        white = resized_mask(white, sized)
        image = sized(image)
        with vision_threads(tokenizer, cells_of(tokenizer, [image])):
            (segment,) = tokenizer.segments(image)
        assert isinstance(segment, CodeSegment)
        rows, columns = (side // vision.spatial_factor for side in white.shape)
        hidden = white.reshape(rows, vision.spatial_factor, columns, vision.spatial_factor).any(axis=(1, 3))
        return cls(np.asarray(image), white, replace(segment, hidden=torch.from_numpy(hidden)))

    def over(self, drawn: Image.Image) -> Image.Image:
        """Return a generated picture of the same size with this one's pixels outside the mask."""
        return Image.fromarray(np.where(self.mask[..., None], np.asarray(drawn), self.pixels))


def resized_mask(white: np.ndarray, sized: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return a mask resized as its picture is; if that makes it smaller, every pixel that white touches is white.

    Args:
        white: bool (H, W).
        sized: what resizes the picture.

    Raises:
        ValueError: nothing is left of it.
    """
    grey = sized(to_rgb(Image.fromarray(white.astype(np.uint8) * 255))).convert("L")
    shrinks = grey.width < white.shape[1] or grey.height < white.shape[0]
    found = np.asarray(grey) > (TOUCHED if shrinks else WHITE)
    if white.any() and not found.any():
        raise ValueError(
            f"the mask has {white.sum()} white pixels of {white.shape[0]}x{white.shape[1]} (height x width), and none is left at the "
            f"{grey.height}x{grey.width} that the picture is drawn at; give one with a larger white part, or a smaller picture"
        )
    return found


def each_mask(mask: Any, count: int) -> list[Any]:
    """Return the mask of each of N pictures, not opened yet.

    Args:
        mask: one for all of them, or a list of one each.

    Raises:
        ValueError: the number of masks is not that of the pictures.
    """
    if not isinstance(mask, list | tuple):
        return [mask] * count
    if len(mask) != count:
        raise ValueError(f"{len(mask)} masks for {count} pictures; give one mask, or one for each picture")
    return list(mask)


def _read_mask(mask: Any, size: Size) -> np.ndarray:
    """(H, W) bool, True where it is drawn anew."""
    if isinstance(mask, str | os.PathLike):
        mask = open_image(Path(mask)).convert("L")
    if isinstance(mask, Image.Image):
        if mask.mode not in ("1", "L"):
            raise ValueError(
                f'the mask is of mode {mask.mode!r}; expected "L" or "1", white where it is drawn anew: mask.convert("L")'
            )
        mask = np.asarray(mask.convert("L")) > WHITE
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        shown = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f'the mask is {shown}; expected a PIL image of mode "L" or "1", a path, or a bool array (H, W)')
    if mask.shape != tuple(size):
        raise ValueError(
            f"the mask is {mask.shape[0]}x{mask.shape[1]} pixels (height x width), the picture {size[0]}x{size[1]}; give one of the "
            "picture's size"
        )
    return mask
