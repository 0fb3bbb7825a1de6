"""Captioned pictures that are made in a moment, and jobs that are killed, for the tests of own data."""

import hashlib
import json
import multiprocessing
import random
import signal
import time

import numpy as np
from PIL import Image, ImageDraw

from emu.cli.fit import fit

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


def write_scenes(folder, count, size=16):
    """Any number of captioned pictures that differ: a disc or a box of any place, size and shade, on any ground."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for number in range(count):
            colour, shape = list(COLOURS)[random.integers(4)], SHAPES[random.integers(2)]
            image = Image.new("RGB", (size, size), tuple(random.integers(0, 256, 3).tolist()))
            pen, (left, top), side = ImageDraw.Draw(image), random.uniform(0, size / 2, 2), random.uniform(4, size / 2)
            shade = tuple((np.array(COLOURS[colour]) + random.integers(-20, 21, 3)).clip(0, 255).tolist())
            draw = pen.ellipse if shape == "disc" else pen.rectangle
            draw((left, top, left + side, top + side), fill=shade)
            image.save(folder / f"{number:06d}.png", compress_level=1)
            where = f"{('top', 'bottom')[int(top + side / 2 > size / 2)]} {('left', 'right')[int(left + side / 2 > size / 2)]}"
            lines.write(
                json.dumps({"file_name": f"{number:06d}.png", "text": f"a {colour} {shape} at the {where}"}) + "\n"
            )
    return folder


def noise(seed, size=32):
    """A picture of smooth noise, unlike every other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def content(run):
    """Digests of everything that is compared byte for byte; what is said of times apart."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    kept = [
        path
        for path in files
        if path.suffix in (".safetensors", ".npy", ".bin", ".model") or path.name == "metrics.json"
    ]
    kept = [path for path in kept if "checkpoints" not in path.parts]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def killed_after(words, ready):
    """Run `emu fit` in a process, and kill it once something is so; True where it was still at work."""
    process = multiprocessing.get_context("fork").Process(target=fit, args=(words,))
    process.start()
    end = time.monotonic() + 120
    while process.is_alive() and not ready() and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()  # does nothing where it has ended
    process.join()
    return process.exitcode == -signal.SIGKILL


MOMENTS = (
    "1-*",
    "2-*",
    "3-*",
    "3-*/checkpoints/*",
    "3-*/model*",
    "4-*",
    "5-*/*",
    "6-*/*",
    "8-*",
    "9-*",
    "9-*/checkpoints/*",
    "model*",
)
"""What is there when a job of one's own data has come so far."""


def killed_over(words, run, seed):
    """Kill a job twelve times, each time a little later on its way; returns how many of them found it at work."""
    draws, found = random.Random(seed), 0
    for moment in MOMENTS:
        wait, since = draws.uniform(0, 0.4), []

        def ready(moment=moment, wait=wait, since=since):
            if not since and any(run.glob(moment)):
                since.append(time.monotonic())
            return bool(since) and time.monotonic() > since[0] + wait

        found += killed_after(words, ready)
    return found


def started(done, tmp_path, name):
    """A run in a folder of its own from the plan of the run `done / "run"`, with its pictures or clips beside it under their name."""
    (tmp_path / name).symlink_to(done / name)
    run = tmp_path / "run"
    run.mkdir()
    plan = json.loads((done / "run" / "plan.json").read_text())
    for table in (plan["made_from"]["init_args"], plan["values"]):
        table["source"] = str(tmp_path / name)
    (run / "plan.json").write_text(json.dumps(plan))
    return run
