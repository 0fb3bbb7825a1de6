"""Video files and animated pictures; decoded in a process of their own, see `emu_tokenizers.pixels.clip_process`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.clip_process import clip_process
from emu_tokenizers.pixels.clip_worker import MAX_CLIP_FRAMES, MAX_CLIP_PIXELS, UNTIMED_RATE
from emu_tokenizers.pixels.images import BadPicture, existing_file, fit_image, open_image
from emu_tokenizers.pixels.listing import is_ignored, picture_suffixes

MAX_RATE = 1000
"""Most frames a second that are asked for."""
MAX_START = 1 << 24
"""Latest start of a clip in seconds, half a year."""


def require_video_reader() -> None:
    """Raise ModuleNotFoundError, which says what to install, where PyAV is missing."""
    if find_spec("av") is None:
        raise ModuleNotFoundError(
            "reading video files needs PyAV: pip install 'emu-tokens[video]'; folders of frames and GIF need nothing"
        )


@dataclass(frozen=True)
class VideoFile:
    """A video file, an animated picture, a TIFF of several pages or (as one frame) any other picture, from a path or from bytes.

    Frames come as a player shows them: upright by the file's display matrix, with square pixels, transparency over white.

    Attributes:
        content: the file, or its bytes.
        name: what messages call it.
    """

    content: Path | bytes = field(repr=False)
    name: str

    @property
    def num_frames(self) -> int:
        """Frames of the clip.

        Raises:
            BadPicture: it cannot be read.
            FileNotFoundError: the file is gone.
        """
        return int(self._ask(ask="count")[0]["count"])

    @property
    def seconds(self) -> float:
        """How long the clip is shown, whatever the times of its frames are; errors as of `num_frames`."""
        return float(self._ask(ask="seconds")[0]["seconds"])

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        """RGB frames `start` to `start + count`, fewer at the end, none beyond it.

        Raises:
            BadPicture: they cannot be read, or are more than a clip may have.
            FileNotFoundError: the file is gone.
        """
        _, frames = self._ask(ask="numbers", start=start, frames=count)
        return [] if frames is None else [Image.fromarray(frame) for frame in frames]

    def sample(
        self,
        fps: float | None = None,
        start: float = 0.0,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, float]:
        """Frames at even times, whatever the times of the stored ones are.

        Args:
            fps: frames a second; None takes the file's own rate.
            start: time of the first frame in seconds.
            frames: most frames, None for all.
            size: (height, width) that frames are cropped and resized to; None keeps the file's.

        Returns:
            Frames (T, H, W, 3) uint8, and their rate.

        Raises:
            BadPicture: they cannot be read, are more than a clip may have, or there are none from that time on.
            FileNotFoundError: the file is gone.
        """
        answer, found = self._ask(
            ask="times",
            fps=None if fps is None else float(fps),
            start=float(start),
            frames=None if frames is None else int(frames),
            size=None if size is None else [int(side) for side in size],
        )
        if found is None:
            raise BadPicture("empty", f"{self.name} has no frames" + (f" from {start:g} seconds on" if start else ""))
        return found, answer["fps"]

    def _ask(self, **request: object) -> tuple[dict, np.ndarray | None]:
        content = self.content if isinstance(self.content, bytes) else existing_file(self.content)
        try:
            return clip_process.ask(content, self.name, **request)
        except ModuleNotFoundError:
            require_video_reader()
            raise


def read_clip(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    fps: float | None = None,
    start: float = 0.0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, float]:
    """A clip from a file, a folder of pictures or a list of picture files, at even times; see `emu.Video.open`.

    Returns:
        Frames (T, H, W, 3) uint8, and how many there are a second.
    """
    _check_numbers(fps, start, frames, size)
    if isinstance(path, str | os.PathLike):
        if not os.path.isdir(path):
            return VideoFile(Path(path), str(path)).sample(fps, start, frames, size)
        files = _pictures_in(Path(path))
    else:
        if not path:
            raise ValueError("a clip of no files; expected at least one")
        if len(path) == 1:
            return read_clip(path[0], fps, start, frames, size)
        files = [Path(file) for file in path]
    rate = UNTIMED_RATE if fps is None else fps
    first = round(start * rate)
    files = files[first : None if frames is None else first + frames]
    if not files:
        raise BadPicture("empty", f"{path} has no frames from {start:g} seconds on at {rate:g} frames a second")
    return read_pictures(files, size), rate


def read_pictures(files: Sequence[Path], size: tuple[int, int] | None = None) -> np.ndarray:
    """Picture files as frames (T, H, W, 3) uint8.

    Args:
        files: one picture each.
        size: (height, width) that each is cropped and resized to; None asks for pictures of one size.

    Raises:
        FileNotFoundError: a file is missing.
        BadPicture: a ValueError; one cannot be read, they differ in size, or they are more than a clip may have.
    """
    found: list[np.ndarray] = []
    for file in files:
        image = open_image(file)
        frame = np.asarray(image if size is None else fit_image(image, size))
        height, width, _ = frame.shape
        if found and frame.shape != found[0].shape:
            raise BadPicture(
                "unequal sizes",
                f"{file} has {height}x{width} pixels, {files[0]} has {found[0].shape[0]}x{found[0].shape[1]}; give a size for all",
            )
        if len(files) > MAX_CLIP_FRAMES or len(files) * height * width > MAX_CLIP_PIXELS:
            raise BadPicture(
                "too large",
                f"{files[0]} and {len(files) - 1} more of {height}x{width} pixels are above the limit of {MAX_CLIP_FRAMES} frames and "
                f"{MAX_CLIP_PIXELS} pixels in all; read fewer frames, or smaller ones",
            )
        found.append(frame)
    return np.stack(found)


def _pictures_in(folder: Path) -> list[Path]:
    suffixes = picture_suffixes()
    names = [name for name in os.listdir(folder) if not is_ignored(name) and Path(name).suffix.lower() in suffixes]
    if not names:
        raise FileNotFoundError(f"there is no picture in {folder}; expected frames, such as 0.png, 1.png")
    return [folder / name for name in sorted(names, key=natural_key)]


def _check_numbers(fps: Any, start: Any, frames: Any, size: Any) -> None:
    if fps is not None and not (_is(fps, Real) and 0 < fps <= MAX_RATE):
        raise ValueError(f"fps is {fps!r}; expected a number of frames a second, at most {MAX_RATE}, or None")
    if not (_is(start, Real) and 0 <= start <= MAX_START):
        raise ValueError(f"start is {start!r}; expected seconds from the clip's beginning, 0 or more")
    if frames is not None and not (_is(frames, Integral) and frames >= 1):
        raise ValueError(f"frames is {frames!r}; expected a whole number of at least 1, or None for all")
    sides = size if isinstance(size, Sequence) else ()
    if size is not None and not (len(sides) == 2 and all(_is(side, Integral) and side > 0 for side in sides)):
        raise ValueError(f"size is {size!r}; expected (height, width) in pixels")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
