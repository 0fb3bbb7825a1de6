"""The size at which pictures and clips are tokenized: their own, one for all, or by an area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from emu.documents import Video
from emu_tokenizers.pixels.images import fit_image
from emu_tokenizers.pixels.resize import Resize

Size = tuple[int, int]
"""(height, width) in pixels."""
_FORMS = "own, HEIGHT,WIDTH (64,64), area=PIXELS (area=518400) or area=LEAST:MOST (area=262144:1048576)"


@dataclass(frozen=True)
class Sizing:
    """How pictures become pictures whose sides are multiples of the vision tokenizer's factor.

    Attributes:
        factor: pixels for each code along a side.
        fixed: (height, width) that every picture and frame is cropped and resized to.
        resize: a rule by area; neither rounds each picture's own sides to the nearest multiples.
        clips: whether the rule by area is for clips too.
    """

    factor: int = 1
    fixed: Size | None = None
    resize: Resize | None = None
    clips: bool = True

    def picture(self, image: Image.Image) -> Image.Image:
        """An RGB picture at its size.

        Raises:
            ValueError: the rule by area refuses its shape.
        """
        if self.fixed is None and self.resize is not None:
            return self.resize(image)
        return fit_image(image, self.own_size(image.height, image.width))

    def clip(self, video: Video) -> Video:
        """A clip at its size; errors as in `picture`."""
        height, width = video.frames.shape[1:3]
        by_area = self.fixed is None and self.resize is not None and self.clips
        if not by_area and self.own_size(height, width) == (height, width):
            return video
        rule = self if by_area else Sizing(self.factor, self.fixed)
        return Video(np.stack([np.asarray(rule.picture(frame)) for frame in video.images()]), video.fps)

    def own_size(self, height: int, width: int) -> Size:
        """(height, width) where no rule by area holds: the fixed one, or the sides rounded to multiples of the factor."""
        if self.fixed is not None:
            return self.fixed
        rows, columns = (max(1, round(side / self.factor)) for side in (height, width))
        return rows * self.factor, columns * self.factor


def parse_sizing(words: str | None, factor: int, usual: Resize | None = None) -> Sizing:
    """What a user's words ask for.

    Args:
        words: see the error; None takes pictures as the tokenizer's prompts do, or at their own size.
        factor: of the vision tokenizer.
        usual: how the tokenizer resizes the pictures of prompts.

    Raises:
        ValueError: another form, or sides that are not multiples of the factor.
    """
    if words is None:
        return Sizing(factor, resize=usual, clips=False)
    if words == "own":
        return Sizing(factor)
    kind, _, numbers = words.rpartition("=")
    parts = numbers.split(":" if kind else ",")
    if not all(part.isdecimal() and 0 < int(part) < 1 << 31 for part in parts):
        raise ValueError(f"--size is {words!r}; expected {_FORMS}")
    values = [int(part) for part in parts]
    if kind == "area" and len(values) == 1:
        return Sizing(factor, resize=Resize(factor, area=values[0]))
    if kind == "area" and len(values) == 2 and values[0] <= values[1]:
        return Sizing(factor, resize=Resize(factor, *values))
    if kind or len(values) != 2:
        raise ValueError(f"--size is {words!r}; expected {_FORMS}")
    if values[0] % factor or values[1] % factor:
        raise ValueError(f"--size is {words!r}; expected multiples of {factor}, the factor of the vision tokenizer")
    return Sizing(factor, (values[0], values[1]))
