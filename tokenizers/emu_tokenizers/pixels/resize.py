"""Sizes of pictures for released models: a ratio as a grid of codes, and how a picture of any size is resized before it is encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from emu_tokenizers.pixels.images import to_rgb

Grid = tuple[int, int]

EMU35_GRIDS: dict[str, Grid] = {
    **{"4:3": (55, 73), "21:9": (41, 97), "16:9": (47, 85), "3:2": (52, 78), "1:1": (64, 64)},
    **{"3:4": (73, 55), "9:16": (85, 47), "2:3": (78, 52)},
}
"""Ratio (width:height) -> grid (height, width) of Emu3.5 (`configs/example_config_t2i.py` of baaivision/Emu3.5)."""


def grid_of_ratio(ratio: str, area: int = 518400, factor: int = 8) -> Grid:
    """The grid of codes for a ratio, as `calculate_generate_size` of Emu3's processor has it.

    Args:
        ratio: "width:height", any two positive numbers.
        area: of the picture in pixels; 720 x 720 in Emu3.
        factor: pixels per code along each side.

    Returns:
        (height, width) in codes.

    Raises:
        ValueError: the ratio is not of that form, or a side would have no code.
    """
    parts = ratio.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f'the ratio is {ratio!r}; expected "width:height" such as "16:9"')
    width, height = map(int, parts)
    scale = (area / (width * height)) ** 0.5
    grid = round(height * scale / factor), round(width * scale / factor)
    if min(grid) < 1:
        raise ValueError(f"the ratio {ratio!r} leaves no code along one side of {area} pixels; choose a squarer one")
    return grid


def size_of_ratio(ratio: str, area: int = 518400, factor: int = 8) -> Grid:
    """(height, width) in pixels, for `Emu.generate_images(size=...)`; see `grid_of_ratio`."""
    height, width = grid_of_ratio(ratio, area, factor)
    return height * factor, width * factor


@dataclass(frozen=True)
class Resize:
    """How pictures of any size become pictures that the vision tokenizer takes.

    Attributes:
        factor: sides become multiples of it.
        least, most: bounds of the area in pixels; pictures within them keep their area (Emu3).
        area: the area of every picture in pixels (Emu3.5), in place of `least` and `most`.
    """

    factor: int = 8
    least: int = 512 * 512
    most: int = 1024 * 1024
    area: int | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, resized with a bicubic filter."""
        image = to_rgb(image)
        width, height = image.size
        height, width = self.to_area(height, width) if self.area else self.within(height, width)
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)

    def within(self, height: int, width: int) -> Grid:
        """(height, width) by Emu3's rule, `smart_resize` in emu3/tokenizer/image_processing_emu3visionvq.py of baaivision/Emu3.

        Raises:
            ValueError: a side is below the factor, or one side is more than five times the other.
        """
        factor = self.factor
        if min(height, width) < factor or max(height, width) > 5 * min(height, width):
            raise ValueError(
                f"the picture has {height}x{width} pixels; expected sides of at least {factor} pixels, none more than five times "
                "the other; crop it"
            )
        rounded = round(height / factor) * factor, round(width / factor) * factor
        if math.prod(rounded) > self.most:
            scale = math.sqrt(height * width / self.most)
            return math.floor(height / scale / factor) * factor, math.floor(width / scale / factor) * factor
        if math.prod(rounded) < self.least:
            scale = math.sqrt(self.least / (height * width))
            return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
        return rounded

    def to_area(self, height: int, width: int) -> Grid:
        """(height, width) by Emu3.5's rule, `smart_resize` in src/utils/input_utils.py of baaivision/Emu3.5."""
        assert self.area is not None
        ratio, half = width / height, self.factor // 2
        new_height = int((self.area / ratio) ** 0.5)
        new_width = int(new_height * ratio)
        return (new_height + half) // self.factor * self.factor, (new_width + half) // self.factor * self.factor
