"""Frames of animated pictures and video files by number or by time; runs in the process that decodes clips."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

from PIL import Image

from emu_tokenizers.pixels.images import BadPicture, contained, opened_image, pages_of, to_rgb

PICTURE_FORMATS = ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "JPEG", "BMP", "JPEG2000"]
"""Formats that Pillow knows by their first bytes beyond doubt; everything else is left to PyAV."""
MAX_PAGES = 1 << 16
"""Most frames of an animated picture that are looked at."""
NO_DELAY = 0.1
"""Seconds that viewers show a frame whose duration is 0."""
ROUNDING = Fraction(1, 200)
"""What a GIF's times may be off, in seconds."""


class Reel(Protocol):
    """The frames of one clip."""

    @property
    def rate(self) -> Fraction | None:
        """Frames a second; None for pictures without times, such as the pages of a TIFF."""
        ...

    def count(self) -> int:
        """Number of frames."""
        ...

    def seconds(self) -> float | None:
        """How long the frames are shown by their times; None for pictures without times."""
        ...

    def from_number(self, start: int) -> Iterator[Image.Image]:
        """Upright RGB frames from a number on."""
        ...

    def from_time(self, start: float) -> Iterator[tuple[float, float, Any]]:
        """(begin, end, frame) in seconds, from the frame that is shown at a time on; `picture` makes the frames pictures."""
        ...

    def picture(self, frame: Any) -> Image.Image:
        """A frame of `from_time` as an upright RGB picture."""
        ...


@contextmanager
def opened_reel(content: str | bytes, name: str) -> Iterator[Reel]:
    """The frames of a file or of its bytes; what goes wrong inside the block is the file's fault too.

    Raises:
        BadPicture: it is neither a video nor a picture, is too large or damaged.
        ModuleNotFoundError: it is not a picture, and PyAV is not installed.
    """
    with ExitStack() as stack:
        stack.enter_context(contained(name))
        yield _entered(stack, content, name)


def _entered(stack: ExitStack, content: str | bytes, name: str) -> Reel:
    """Open a file by whichever reader knows it: pictures that are sure, then videos, then the rest of the pictures."""
    try:
        return AnimationReel(stack.enter_context(opened_image(content, name, formats=PICTURE_FORMATS)), name)
    except BadPicture as error:
        if error.reason != "not a picture":
            raise
    try:
        from emu_tokenizers.pixels.reels import opened_video

        if isinstance(content, bytes):
            return stack.enter_context(opened_video(io.BytesIO(content), name))
        return stack.enter_context(opened_video(stack.enter_context(open(content, "rb")), name))
    except (BadPicture, ModuleNotFoundError):
        with suppress(BadPicture):
            return AnimationReel(stack.enter_context(opened_image(content, name)), name)
        raise


class AnimationReel:
    """Frames of a GIF, an animated WebP, PNG or AVIF, pages of a TIFF, or the one frame of any other picture.

    Args:
        image: opened by Pillow; frames are composed by it, disposal and transparency included.
        name: what messages call it.
    """

    def __init__(self, image: Image.Image, name: str) -> None:
        self.image, self.name = image, name
        total = min(getattr(image, "n_frames", 1), MAX_PAGES)
        if image.format == "TIFF":
            self.numbers = pages_of(image, MAX_PAGES)
        elif image.format in ("GIF", "WEBP", "AVIF", "FLI"):
            self.numbers = list(range(total))
        elif image.format == "PNG":  # a default image is for viewers that know no animations
            self.numbers = list(range(1 if getattr(image, "default_image", False) and total > 1 else 0, total))
        else:  # further pictures of a JPEG (MPO) are other views of the first
            self.numbers = [0]
        self.timed = image.format != "TIFF" and len(self.numbers) > 1

    @property
    def rate(self) -> Fraction | None:
        return even_rate(self._durations) if self.timed else None

    def count(self) -> int:
        return len(self.numbers)

    def seconds(self) -> float | None:
        return sum(self._durations) if self.timed else None

    @cached_property
    def _durations(self) -> list[float]:
        return [self._show(number) for number in self.numbers]

    def from_number(self, start: int) -> Iterator[Image.Image]:
        for place, number in enumerate(self.numbers):
            self._show(number)
            if place >= start:
                yield to_rgb(self.image, self.name)

    def from_time(self, start: float) -> Iterator[tuple[float, float, Any]]:
        begin = 0.0
        for number in self.numbers:
            end = begin + self._show(number)
            if end > start:
                yield begin, end, self.image
            begin = end

    def picture(self, frame: Image.Image) -> Image.Image:
        return to_rgb(frame, self.name)

    def _show(self, number: int) -> float:
        """Go to a frame; returns its duration in seconds."""
        self.image.seek(number)
        self.image.load()  # only now do WebP and AVIF know the duration
        duration = self.image.info.get("duration", 0)
        return duration / 1000 if isinstance(duration, int | float) and duration > 0 else NO_DELAY


def even_rate(durations: list[float]) -> Fraction:
    """The rate of an animation, in frames a second, from the duration of each frame in seconds.

    Writers join equal frames and round times to hundredths of a second, so a duration counts for as many frames as the shortest one goes
    into it, and a whole number is taken where rounding explains the difference.
    """
    total = Fraction(sum(durations)).limit_denominator(10_000)
    count = sum(round(duration / min(durations)) for duration in durations)
    whole = max(1, round(count / total))
    explained = count / (total + ROUNDING) <= whole <= count / max(total - ROUNDING, ROUNDING)
    return Fraction(whole) if explained else count / total
