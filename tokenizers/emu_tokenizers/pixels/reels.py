"""Frames of video files through PyAV (the extra "video"); runs in the process that decodes clips."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from emu_tokenizers.pixels.images import MAX_PIXELS, BadPicture, to_rgb

CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,ivf,nut,mxf,dv,rm,yuv4mpegpipe,h264,hevc,m4v,obu"
"""Formats of video files that are read; playlists are not among them, for they name other files and addresses to open."""
DEFAULT_RATE = Fraction(25)
"""Frames a second of a video file that says nothing."""
HIGHEST_STATED_RATE = 240
"""Frames a second above which a file states the resolution of its clock instead, as recordings of browsers do."""
MOST_STRETCHED = 8
"""Largest ratio of a pixel's sides; what states a larger one is taken for damage, and its pixels for square."""
_ATTACHED_PICTURE = 0x400
_REMEMBERED: dict[tuple[int, ...], list[int]] = {}
_MOST_REMEMBERED = 64
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""Signs of a display matrix's a, b, c, d to what they ask for: x goes to a x + c y, y to b x + d y."""


@contextmanager
def opened_video(file: IO[bytes], name: str) -> Iterator[VideoReel]:
    """The frames of a video file; what goes wrong inside the block is the file's fault too.

    Raises:
        BadPicture: there is no video in it, its frames are too large, or it is damaged.
    """
    try:
        reel = VideoReel(file, name)
        try:
            yield reel
        finally:
            reel.container.close()
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        raise BadPicture("damaged", f"{name} cannot be read: {error.strerror}") from error


class VideoReel:
    """The frames of the first video stream of a file.

    Args:
        file: opened for reading; PyAV gets no name, which could be an address of the network.
        name: what messages call it.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        """Start from the beginning."""
        self.file.seek(0)
        options = {"format_whitelist": CONTAINERS}  # of the container alone: some PyAV count the streams too early
        self.container: Any = av.open(
            self.file, container_options=options, metadata_errors="replace", buffer_size=1 << 16
        )
        streams = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if not streams:
            raise BadPicture("not a video", f"{self.name} holds no video")
        self.stream: Any = streams[0]
        self.stream.thread_count = 1  # clips are short, and each thread would take its share of the memory limit
        if self.stream.width * self.stream.height > MAX_PIXELS:
            raise BadPicture("too large", f"{self.name} has frames of {self.stream.width}x{self.stream.height} pixels")
        self.base: Fraction = self.stream.time_base or Fraction(1, 1000)
        self.first: int = self.stream.start_time or 0

    @cached_property
    def rate(self) -> Fraction:
        """The average number of frames a second, as the file says it where that can be, else counted."""
        stated: Fraction | None = self.stream.average_rate
        if stated and stated <= HIGHEST_STATED_RATE:
            return stated
        stamps = self._stamps()
        lasts = (stamps[-1] - stamps[0]) * self.base if stamps else 0
        return Fraction((len(stamps) - 1) / lasts).limit_denominator(1001) if lasts > 0 else DEFAULT_RATE

    def count(self) -> int:
        return len(self._stamps())

    def seconds(self) -> float:
        stamps = self._stamps()
        return float((stamps[-1] - stamps[0]) * self.base + 1 / self.rate) if stamps else 0.0

    def from_number(self, start: int) -> Iterator[Image.Image]:
        stamps = self._stamps() if start else []
        if start and start >= len(stamps):
            return
        for stamp, frame in self._decoded(stamps[start] if start else None):
            if not start or stamp >= stamps[start]:
                yield self.picture(frame)

    def from_time(self, start: float) -> Iterator[tuple[float, float, Any]]:
        waiting: tuple[float, Any] | None = None
        for stamp, frame in self._decoded(self.first + math.floor(start / self.base) if start else None):
            begin = float((stamp - self.first) * self.base)
            if waiting is not None and begin > start:
                yield waiting[0], begin, waiting[1]
            waiting = begin, frame
        if waiting is not None:
            usual, stated = float(1 / self.rate), float((getattr(waiting[1], "duration", 0) or 0) * self.base)
            yield waiting[0], waiting[0] + (stated if stated > 0 else usual), waiting[1]

    def picture(self, frame: Any) -> Image.Image:
        """A frame in RGB, alpha over white, with square pixels, turned as its display matrix says."""
        alpha = any(component.is_alpha for component in frame.format.components)
        image = Image.fromarray(self._reformatter.reformat(frame, format="rgba" if alpha else "rgb24").to_ndarray())
        if alpha:
            image = to_rgb(image)
        aspect = self.stream.sample_aspect_ratio or 1
        if aspect != 1 and 1 / MOST_STRETCHED < aspect < MOST_STRETCHED:
            image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
        turn = _TURNS.get(_display_signs(frame))
        return image if turn is None else image.transpose(turn)

    def _stamps(self) -> list[int]:
        """Time stamps of the frames in the order in which they are shown, from the packets, nothing decoded.

        They are remembered for some files; bytes are read anew.
        """
        key = _identity(self.file)
        if key not in _REMEMBERED:
            stamps: list[int] = []
            for packet in self.container.demux(self.stream):
                if packet.size and not packet.is_discard:
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    stamps.append(stamp if stamp is not None else (stamps[-1] + 1 if stamps else 0))
            self.container.close()
            self._open()
            if not key:
                return sorted(stamps)
            if len(_REMEMBERED) == _MOST_REMEMBERED:
                del _REMEMBERED[next(iter(_REMEMBERED))]
            _REMEMBERED[key] = sorted(stamps)
        return _REMEMBERED[key]

    def _decoded(self, wanted: int | None) -> Iterator[tuple[int, Any]]:
        """(time stamp, frame) from the key frame before a time stamp on, or all."""
        step = max(1, round(1 / self.rate / self.base))  # before a seek, which counting frames would undo
        if wanted is None or wanted <= self.first:
            return self._stamped(step)
        try:
            self.container.seek(wanted, stream=self.stream)
            frames = self._stamped(step)
            first = next(frames, None)
        except av.FFmpegError:  # no index, or a wrong one
            first = None
        if first is not None and first[0] <= wanted:
            return chain([first], frames)
        self.container.close()
        self._open()
        return self._stamped(step)

    def _stamped(self, step: int) -> Iterator[tuple[int, Any]]:
        last: int | None = None
        for frame in self.container.decode(self.stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is None:
                stamp = self.first if last is None else last + step
            last = stamp
            yield stamp, frame


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    """What tells a file on the disk from others and from what it was before; empty for bytes in memory."""
    try:
        found = os.fstat(file.fileno())
    except OSError:  # also io.UnsupportedOperation, of bytes
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture that stands for an audio file."""
    flags = getattr(stream, "disposition", 0)  # by version of PyAV: nothing, a flag or a number
    return bool(int(getattr(flags, "value", flags)) & _ATTACHED_PICTURE)


def _display_signs(frame: Any) -> tuple[int, int, int, int]:
    """Signs of a, b, c, d of a frame's display matrix, the smaller pair 0; (1, 0, 0, 1) where it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), np.int32)
            a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
            if abs(a) + abs(d) >= abs(b) + abs(c):
                b = c = 0
            else:
                a = d = 0
            return _sign(a), _sign(b), _sign(c), _sign(d)
    return (1, 0, 0, 1)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
