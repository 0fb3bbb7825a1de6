"""Pictures from files, for commands."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def open_picture(file: Path) -> Image.Image:
    """A picture as people see it: turned as its camera was held, in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, a damaged one, or one of too many pixels.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no picture {file}")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
