"""Captioned pictures that are made in a moment: coloured shapes on coloured grounds, for the tests of own data."""

import json

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220), "yellow": (235, 210, 60)}
SHAPES = ("disc", "box", "bar")


def drawn(colour, shape, size=32, shift=0):
    image = Image.new("RGB", (size, size), (240, 240, 235))
    pen, box = ImageDraw.Draw(image), (size // 4 + shift, size // 4, 3 * size // 4 + shift, 3 * size // 4)
    if shape == "disc":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "box":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.rectangle((box[0], size // 2 - 3, box[2], size // 2 + 3), fill=COLOURS[colour])
    return image


def write_pictures(folder, count=12, size=32):
    """Captioned pictures with metadata.jsonl; the first twelve are all different in colour or shape."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    with (folder / "metadata.jsonl").open("w") as lines:
        for number in range(count):
            colour, shape = kinds[number % len(kinds)]
            drawn(colour, shape, size, number // len(kinds)).save(folder / f"{number:04d}.png")
            lines.write(json.dumps({"file_name": f"{number:04d}.png", "text": f"a {colour} {shape}"}) + "\n")
    return folder


def noise(seed, size=32):
    """A picture of smooth noise, unlike every other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
