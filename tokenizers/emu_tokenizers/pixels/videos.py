"""Frames of video files through PyAV (the extra "video"), and of animated pictures through Pillow."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from emu_tokenizers.pixels.transforms import MAX_PIXELS, BadPicture, opened_image, to_rgb


def require_video_reader() -> None:
    """Raises ModuleNotFoundError, which says what to install, where PyAV is missing."""
    if find_spec("av") is None:
        raise ModuleNotFoundError(
            "reading video files needs PyAV: pip install 'emu-tokens[video]'; folders of frames and GIF need nothing"
        )


@dataclass(frozen=True)
class Video:
    """A video file or a GIF, from a path or from its bytes.

    Attributes:
        content: the file, or its bytes.
        name: what messages call it.
    """

    content: Path | bytes = field(repr=False)
    name: str

    @property
    def num_frames(self) -> int:
        """Frames of the clip, from the header where it says so, else by counting.

        Raises:
            BadPicture: it cannot be read.
        """
        if self._animated:
            with opened_image(self.content, self.name, MAX_PIXELS) as image:
                return getattr(image, "n_frames", 1)
        with self._stream() as (container, stream):
            return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        """RGB frames `start` to `start + count`, fewer at the end.

        Raises:
            BadPicture: they cannot be read.
        """
        if self._animated:
            with opened_image(self.content, self.name, MAX_PIXELS) as image:
                return [
                    to_rgb(frame.copy()) for frame in _between(image, start, count)
                ]  # one image, moved on each time
        require_video_reader()
        with self._stream() as (container, stream):
            rate, base = stream.average_rate or Fraction(25), stream.time_base
            first = stream.start_time or 0
            wanted = first + round(start / rate / base)
            if start:
                container.seek(wanted, stream=stream)  # the last key frame before
            frames: list[Image.Image] = []
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts < wanted - 1 / rate / base / 2:
                    continue
                frames.append(frame.to_image())
                if len(frames) == count:
                    break
            return frames

    @property
    def _animated(self) -> bool:
        if isinstance(self.content, Path):
            return self.content.suffix.lower() == ".gif"
        return self.content[:4] == b"GIF8"

    @contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        import av

        if isinstance(self.content, Path) and not self.content.is_file():
            raise FileNotFoundError(f"there is no file {self.content}")
        file = str(self.content) if isinstance(self.content, Path) else io.BytesIO(self.content)
        try:
            with av.open(file) as container:
                if not container.streams.video:
                    raise BadPicture("no picture", f"{self.name} holds no video")
                stream = container.streams.video[0]
                if stream.width * stream.height > MAX_PIXELS:
                    raise BadPicture("too large", f"{self.name} has frames of {stream.width}x{stream.height} pixels")
                yield container, stream
        except av.FFmpegError as error:
            raise BadPicture("damaged", f"{self.name} cannot be read: {error}") from error


def _between(image: Image.Image, start: int, count: int) -> Iterator[Image.Image]:
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        if number >= start + count:
            return
        if number >= start:
            yield frame
