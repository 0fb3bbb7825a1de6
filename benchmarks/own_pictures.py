"""Captioned pictures for `emu fit --config own-images`, as many as one likes: drawn scenes of several sizes, and crops of two photographs.

    python benchmarks/own_pictures.py scenes FOLDER --count 1000       # one thing before a shaded ground, 40 to 96 pixels
    python benchmarks/own_pictures.py photographs FOLDER --count 600   # of the two that scikit-learn brings (extra `demo`)
    emu fit --config own-images --data.source FOLDER --budget 5min

Captions name the thing, its colour, size and place and the two colours of the ground, or the photograph, the place of the crop and how
near it is, each in one of several wordings. Pictures and captions follow from --seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from emu_tokenizers.files import write_file

COLOURS = {
    "red": (214, 48, 44),
    "orange": (240, 140, 40),
    "yellow": (238, 208, 56),
    "green": (44, 150, 66),
    "cyan": (52, 186, 204),
    "blue": (48, 76, 216),
    "purple": (146, 54, 180),
    "brown": (128, 84, 50),
    "black": (28, 28, 32),
    "white": (244, 244, 240),
}
SHAPES = ("disc", "box", "triangle", "ring", "bar", "cross")
EXTENTS = {"tiny": 0.16, "small": 0.26, "large": 0.4, "huge": 0.56}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIZES = ((40, 40), (48, 64), (64, 64), (64, 48), (96, 72))
"""(width, height)"""
FINE = 2
WORDINGS = (
    "a {extent} {colour} {shape} at the {place}, from {first} to {second}",
    "{extent} {shape}, {colour}, {place}, on a ground that fades from {first} to {second}",
    "on {first} fading to {second} there is a {colour} {shape}, {extent}, {place}",
)
VIEWS = (
    "{name}, {place}, seen from {distance}",
    "a part of {name}: {place}, {distance}",
    "the {place} of the photograph of {name} from {distance}",
)
PHOTOGRAPHS = {"china.jpg": "a temple in China", "flower.jpg": "a flower"}
DISTANCES = {"far away": 260, "afar": 190, "nearby": 130, "close by": 90}
"""Sides of the crops, in pixels of the photograph."""


def place_of(x: float, y: float) -> str:
    """Words for a place in the unit square."""
    return f"{ROWS[int(3 * y)]} {COLUMNS[int(3 * x)]}"


def scene(draws: random.Random) -> tuple[Image.Image, str]:
    """A thing before a ground that fades from one colour to another, and its caption."""
    width, height = draws.choice(SIZES)
    first, second, colour = draws.sample([*COLOURS], 3)
    shape, extent = draws.choice(SHAPES), draws.choice([*EXTENTS])
    ramp = np.linspace(0, 1, FINE * (height if draws.random() < 0.5 else width))
    ramp = ramp[:, None] if len(ramp) == FINE * height else ramp[None]
    ramp = np.broadcast_to(ramp, (FINE * height, FINE * width))[..., None]
    ground = (1 - ramp) * np.array(COLOURS[first]) + ramp * np.array(COLOURS[second])
    image = Image.fromarray(ground.round().astype(np.uint8))
    radius = EXTENTS[extent] / 2
    x, y = (draws.uniform(radius, 1 - radius) for _ in range(2))
    side = FINE * min(width, height)
    left, top = (x * FINE * width - radius * side, y * FINE * height - radius * side)
    paint(ImageDraw.Draw(image), shape, (left, top, left + 2 * radius * side, top + 2 * radius * side), COLOURS[colour])
    words = {"shape": shape, "extent": extent, "colour": colour, "place": place_of(x, y)}
    caption = draws.choice(WORDINGS).format(first=first, second=second, **words)
    return image.resize((width, height), Image.Resampling.BOX), caption


def paint(pen: ImageDraw.ImageDraw, shape: str, box: tuple[float, ...], colour: tuple[int, ...]) -> None:
    """Draw a shape into a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    third = (right - left) / 3
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=max(2, round(third / 1.5)))
    elif shape == "triangle":
        pen.polygon([(left, bottom), ((left + right) / 2, top), (right, bottom)], fill=colour)
    elif shape == "box":
        pen.rectangle(box, fill=colour)
    else:
        pen.rectangle((left, top + third, right, bottom - third), fill=colour)
        if shape == "cross":
            pen.rectangle((left + third, top, right - third, bottom), fill=colour)


def scenes(count: int, seed: int) -> Iterator[tuple[Image.Image, str]]:
    """That many scenes."""
    draws = random.Random(seed)
    for _ in range(count):
        yield scene(draws)


def photographs(count: int, seed: int) -> Iterator[tuple[Image.Image, str]]:
    """That many crops of photographs, at the size that they have there."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    pictures = {Path(name).name: pixels for name, pixels in zip(found.filenames, found.images, strict=True)}
    draws = random.Random(seed)
    for _ in range(count):
        file, distance = draws.choice([*PHOTOGRAPHS]), draws.choice([*DISTANCES])
        height, width = pictures[file].shape[:2]
        side = DISTANCES[distance]
        left, top = draws.randint(0, width - side), draws.randint(0, height - side)
        place = place_of((left + side / 2) / width, (top + side / 2) / height)
        words = {"name": PHOTOGRAPHS[file], "place": place, "distance": distance}
        caption = draws.choice(VIEWS).format(**words)
        yield Image.fromarray(pictures[file][top : top + side, left : left + side]), caption


KINDS = {"scenes": scenes, "photographs": photographs}


def write(folder: Path, kind: str, count: int, seed: int) -> None:
    """Write pictures, a thousand a folder, and metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for number, (image, caption) in enumerate(KINDS[kind](count, seed)):
        name = f"{number // 1000:03d}/{number:06d}.png"
        if number % 1000 == 0:
            (folder / name).parent.mkdir()
        image.save(folder / name, compress_level=1)
        lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
    write_file(folder / "metadata.jsonl", "".join(lines).encode())


def main() -> None:
    """Make a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS])
    parser.add_argument("folder", type=Path, help="that is made")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.kind, given.count, given.seed)


if __name__ == "__main__":
    main()
