"""How well `emu fit --config own-videos` learns to move things: clips whose caption says what moves where, and a reader of directions.

    python benchmarks/own_videos.py make clips                 # 500 clips of two sizes and two rates, a sixth of the combinations left out
    emu fit --config own-videos --data.source clips --budget 30min
    python benchmarks/own_videos.py measure runs/own-videos/model --output drawn.gif

`measure` draws the combinations of colour, shape and direction that no clip shows, and reads from the frames alone where the thing moves
and which colour it has. The same reader is right of every clip that `make` writes; `check` says so.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emu import Emu
from emu.documents import Video
from emu.media import gif_bytes, tiled
from emu_tokenizers.pixels.images import as_arrays

COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (50, 70, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 50, 180),
    "cyan": (40, 190, 210),
}
SHAPES = ("square", "disc", "triangle", "diamond")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACKGROUNDS = ((245, 245, 240), (128, 128, 128), (25, 25, 30))
SIZES, RATES, FRAMES = ((32, 32), (64, 48)), (8, 4), 8
SPEED = 0.25
"""Sides of the frame a second: at 4 frames a second a thing moves twice as far from frame to frame as at 8."""
RADIUS = 0.17
LEAST_MOVE = 0.06
"""Sides of the frame that a thing must move in a clip for its direction to be read; slower things stand still."""


@dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes:
        colour, shape, way, rate: as the caption says them.
    """

    colour: str
    shape: str
    way: str
    rate: int

    @property
    def caption(self) -> str:
        """The caption."""
        return f"a {self.colour} {self.shape} moves {self.way} at {self.rate} fps"

    @property
    def held_out(self) -> bool:
        """Whether no clip shows this combination; each two of its three parts stand together in others."""
        places = [*COLOURS].index(self.colour), SHAPES.index(self.shape), [*WAYS].index(self.way)
        return (places[0] + 2 * places[1] + 3 * places[2]) % len(COLOURS) == 0

    def draw(self, size: tuple[int, int], draws: random.Random) -> list[Image.Image]:
        """Frames of a (width, height), from a random place before a random background, smooth at the edges."""
        side, fine = min(size), 4
        background = draws.choice(BACKGROUNDS)
        middle = [length / 2 + draws.uniform(-0.12, 0.12) * side for length in size]
        frames = []
        for time in range(FRAMES):
            shift = SPEED * side * (time - (FRAMES - 1) / 2) / self.rate
            x, y = (fine * (at + shift * step) for at, step in zip(middle, WAYS[self.way], strict=True))
            ys, xs = np.mgrid[: fine * size[1], : fine * size[0]] + 0.5
            inside = _inside(self.shape, (xs - x) / (fine * RADIUS * side), (ys - y) / (fine * RADIUS * side))
            picture = np.where(inside[..., None], COLOURS[self.colour], background).astype(np.uint8)
            frames.append(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        return frames


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (in radii from the middle) belong to a shape."""
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "disc":
        return x * x + y * y <= 1
    if shape == "diamond":
        return abs(x) + abs(y) <= 1.2
    return (y <= 0.8) & (2 * abs(x) <= y + 1.2)


def scenes(held_out: bool) -> list[Scene]:
    """All combinations that clips show, or that none shows, at each rate."""
    every = [Scene(c, s, w, r) for c in COLOURS for s in SHAPES for w in WAYS for r in RATES]
    return [scene for scene in every if scene.held_out == held_out]


def write_clips(folder: Path, count: int = 500, seed: int = 0) -> None:
    """Write clips, by turns as GIF and as WebP, with a caption beside each."""
    folder.mkdir(parents=True)
    draws = random.Random(seed)
    shown = scenes(held_out=False)
    draws.shuffle(shown)
    for number in range(count):
        scene = shown[number % len(shown)]
        frames = scene.draw(SIZES[draws.randrange(len(SIZES))], draws)
        name = folder / f"{number:04d}"
        data = gif_bytes(frames, scene.rate) if number % 2 else webp_bytes(frames, scene.rate)
        name.with_suffix(".gif" if number % 2 else ".webp").write_bytes(data)
        name.with_suffix(".txt").write_text(scene.caption)


def webp_bytes(frames: Sequence[Image.Image], rate: int) -> bytes:
    """An animated WebP that keeps every pixel."""
    written = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 // rate, "loop": 0, "lossless": True}
    frames[0].save(written, format="webp", **options)
    return written.getvalue()


@dataclass(frozen=True)
class Reading:
    """What a reader sees in a clip.

    Attributes:
        way: direction of motion, or "none".
        colour: of what moves.
        speed: sides of the frame a second.
    """

    way: str
    colour: str
    speed: float


def read_scene(frames: np.ndarray, rate: float) -> Reading:
    """Direction, colour and speed of the one thing before a flat background.

    Args:
        frames: (T, H, W, 3) uint8.
        rate: frames a second.
    """
    levels = frames.astype(np.float64)
    edges = [levels[:, 0], levels[:, -1], levels[:, :, 0], levels[:, :, -1]]
    background = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    contrast = abs(levels - background).max(axis=-1)
    weights = np.where(contrast > 50, contrast, 0.0)
    seen = weights.sum(axis=(1, 2)) > 0
    if seen.sum() < 2:
        return Reading("none", "none", 0.0)
    ys, xs = np.mgrid[: frames.shape[1], : frames.shape[2]]
    total = weights.sum(axis=(1, 2))[seen]
    times = np.arange(len(frames))[seen]
    x, y = (np.polyfit(times, (weights[seen] * at).sum(axis=(1, 2)) / total, 1)[0] for at in (xs, ys))
    side = min(frames.shape[1:3])
    moved = max(abs(x), abs(y)) * (len(frames) - 1) / side
    way = max(WAYS, key=lambda name: WAYS[name][0] * x + WAYS[name][1] * y) if moved >= LEAST_MOVE else "none"
    inside = contrast > 0.7 * contrast.max()
    colour = np.median(levels[inside], axis=0)
    nearest = min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - colour) ** 2).sum()))
    return Reading(way, nearest, max(abs(x), abs(y)) * rate / side)


def check(folder: Path) -> dict[str, float]:
    """Shares of the clips of a folder whose direction and colour are read as their captions say them."""
    found = []
    for file in sorted([*folder.glob("*.gif"), *folder.glob("*.webp")]):
        words = file.with_suffix(".txt").read_text().split()
        clip = Video.open([file])
        seen = read_scene(clip.frames, clip.fps)
        found.append((seen.way == words[4], seen.colour == words[1], clip.fps == float(words[6])))
    shares = np.mean(found, axis=0)
    return {"clips": len(found), **dict(zip(("direction", "colour", "rate"), shares.tolist(), strict=True))}


def measure(emu: Emu, size: int, each: int, seed: int, **options: float) -> tuple[dict[str, float], list[np.ndarray]]:
    """Draw combinations that no clip shows; shares that are right, and the clips (T, H, W, 3)."""
    asked = scenes(held_out=True)
    drawn, found = [], []
    for rate in RATES:
        chosen = [scene for scene in asked if scene.rate == rate]
        prompts = [scene.caption for scene in chosen for _ in range(each)]
        made = emu.generate_videos(prompts, size=(size, size), frames=FRAMES, fps=rate, seed=seed, **options)
        for number, one in enumerate(made):
            scene = chosen[number // each]
            frames = as_arrays(one.frames)
            seen = read_scene(frames, rate)
            drawn.append(frames)
            found.append((seen.way == scene.way, seen.colour == scene.colour, seen.speed / SPEED))
    values = np.array(found, dtype=float)
    direction, colour = values[:, 0].mean(), values[:, 1].mean()
    both, speed = values[:, :2].prod(axis=1).mean(), float(np.median(values[:, 2]))
    figures = {"drawn": len(drawn), "direction": direction, "colour": colour, "both": both, "median_speed": speed}
    return figures, drawn


def main() -> None:
    """Make clips, check the reader, or measure a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("make", "check", "measure"))
    parser.add_argument("path", type=Path, help="folder of clips, or of a model")
    parser.add_argument("--count", type=int, default=500, help="clips to make")
    parser.add_argument("--size", type=int, default=32, help="side of the frames that are drawn")
    parser.add_argument("--each", type=int, default=4, help="clips of each caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="animation of what was drawn")
    parser.add_argument("--options", type=json.loads, default={}, help='of the sampling: {"guidance_scale": 2}')
    given = parser.parse_args()
    if given.task == "make":
        write_clips(given.path, given.count, given.seed)
    if given.task in ("make", "check"):
        print(json.dumps(check(given.path)))
        return
    emu = Emu.from_pretrained(given.path)
    figures, drawn = measure(emu, given.size, given.each, given.seed, **given.options)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    if given.output:
        sheets = [tiled([Image.fromarray(clip[time]) for clip in drawn], 16) for time in range(FRAMES)]
        given.output.write_bytes(gif_bytes(sheets, RATES[0]))


if __name__ == "__main__":
    main()
