"""Pictures and clips that lines and words name, read at the size that is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from emu.data.tokenizing.picture_sizes import Size
from emu.documents import Video
from emu.lines import BadLine, shown
from emu_tokenizers.pixels.clip_worker import UNTIMED_RATE
from emu_tokenizers.pixels.images import BadPicture, fit_image, open_image, opened_image
from emu_tokenizers.pixels.listing import VIDEO_SUFFIXES
from emu_tokenizers.pixels.videos import VideoFile

MAX_NUMBER = 1_000_000
"""Largest weight, rate or time in seconds that a line may give."""


def read_picture(source: Path | bytes, size: Size | None = None, name: str | None = None) -> Image.Image:
    """A picture file, or the bytes of one, cropped and resized to (height, width) where a size is given.

    Raises:
        FileNotFoundError: there is no such file.
        BadPicture: it is not a picture, or is damaged or too large.
    """
    image = open_image(source, name=name)
    return image if size is None else fit_image(image, size)


def is_clip(file: Path) -> bool:
    """Whether a name stands for more than one picture: a folder, a video or an animation, by its ending or its number of frames."""
    if os.path.isdir(file) or file.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with opened_image(file, str(file)) as image:
            # further pictures of a JPEG are other views of the first
            return image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1
    except (BadPicture, OSError, ValueError):  # whoever reads it says what is wrong with it
        return False


def read_clip(item: Mapping[str, Any], folder: Path, size: Size | None = None, fps: float | None = None) -> Video:
    """The clip that an item names.

    Args:
        item: {"frames": one file (an animation, a video, a folder of frames) or a list of pictures, or of the bytes of pictures} or
            {"video": a file, or its bytes}, with "fps" and, for a video, "start" in seconds and "frames", the number of frames.
        folder: that file names start from.
        size: (height, width) that frames are cropped and resized to.
        fps: rate at which a file is read where the item says nothing; None keeps the file's own.

    Raises:
        FileNotFoundError: a file is missing.
        BadLine: a value of the item is of the wrong kind.
        ValueError: a file cannot be read.
    """
    rate = number_of(item, "fps", above=0)
    if "video" in item:
        start = number_of(item, "start")
        count = item.get("frames")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 1 << 31):
            raise BadLine("wrong value", f"frames is {shown(count)}; expected a number of frames, 1 or more")
        part: dict[str, Any] = {"fps": rate or fps, "start": start or 0.0, "frames": count, "size": size}
        if isinstance(item["video"], bytes):
            return Video(*VideoFile(item["video"], "the clip").sample(**part))
        return Video.open(file_of(item["video"], folder, "video"), **part)
    names = item["frames"] if isinstance(item["frames"], list) else [item["frames"]]
    if names and all(isinstance(name, bytes) for name in names):
        return Video([read_picture(name, size) for name in names], rate or fps or UNTIMED_RATE)
    files = [file_of(name, folder, "frames") for name in names]
    if not files:
        raise BadLine(
            "wrong value", "frames is []; expected picture files, or one file that is an animation or a video"
        )
    moving = next((file for file in files if len(files) > 1 and is_clip(file)), None)
    if moving is not None:
        raise BadLine("wrong value", f"{moving} is a clip of its own; name it alone, or name still pictures")
    return Video.open(files, fps=rate or fps, size=size)


def file_of(name: Any, folder: Path, key: str) -> Path:
    """The file of a name in a line, which stands under a key.

    Raises:
        BadLine: the name is not text.
    """
    if not isinstance(name, str) or not name:
        raise BadLine("wrong value", f"{key} is {shown(name)}; expected the name of a file")
    return folder / name


def number_of(item: Mapping[str, Any], key: str, above: float | None = None) -> float | None:
    """A number of an item, 0 or more, or above a bound; None where the item does not have it.

    Raises:
        BadLine: it is something else.
    """
    value = item.get(key)
    if value is None and key not in item:
        return None
    expected = "a number, 0 or more" if above is None else f"a number above {above:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine("wrong value", f"{key} is {shown(value)}; expected {expected}")
    if not 0 <= value <= MAX_NUMBER or (above is not None and value <= above):
        raise BadLine("wrong value", f"{key} is {shown(value)}; expected {expected}, at most {MAX_NUMBER}")
    return float(value)
