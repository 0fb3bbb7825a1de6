"""`emu generate-videos`: one clip for each line of a file of prompts, as frames, as GIF, and as MP4 where PyAV is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emu.cli.batch import SETTINGS, LineReader, Manifest, Request, load, parser, run
from emu.documents import Video
from emu.media import can_write_mp4, tiled
from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import open_image

VIDEO_SETTINGS = (*SETTINGS, "frames", "fps")
OVERVIEW_FRAMES = 16


def main(arguments: Sequence[str]) -> int:
    """Run `emu generate-videos`.

    Returns:
        The exit code: 1 where a line of the file was bad, 0 otherwise.
    """
    words = parser(
        "generate-videos",
        "Make one clip for each line of a file of prompts. Run it again to go on after a stop.",
        "size, frames, fps, guidance_scale, negative_prompt, temperature, top_k, top_p, first_frames (a file or a list of files)",
    )
    words.add_argument("--frames", type=int, help="length of the clips")
    words.add_argument("--fps", type=float, help="frames a second")
    options = words.parse_args(arguments)
    emu = load(options)
    given = {name: getattr(options, name) for name in VIDEO_SETTINGS}
    defaults = emu.defaults.updated(**{**given, "size": options.size and tuple(options.size)})
    reader = LineReader(defaults, VIDEO_SETTINGS, emu.spatial_factor, options.seed, extra=("first_frames",))
    requests, problems = reader.read(options.prompts)
    options.output.mkdir(parents=True, exist_ok=True)

    def make(batch: list[Request]) -> list[list[Path]]:
        settings = batch[0].settings
        begins = "first_frames" in batch[0].extra
        results = emu.generate_videos(
            [request.prompt for request in batch],
            **{name: getattr(settings, name) for name in VIDEO_SETTINGS},
            first_frames=[first_frames(request.extra["first_frames"], options.prompts.parent) for request in batch]
            if begins
            else None,
            seed=[request.seed for request in batch],
            window=options.window,
            batch_size=options.batch_size,
        )
        suffixes = ("", ".gif", ".mp4") if can_write_mp4() else ("", ".gif")
        files = [[options.output / f"{request.stem}{suffix}" for suffix in suffixes] for request in batch]
        for result, targets in zip(results, files, strict=True):
            for target in targets:
                result.save(target)
        return files

    manifest = Manifest(options.output, f"{options.model} {emu.fingerprint}")
    return run(requests, problems, manifest, make, strip, columns=1, batch_size=options.batch_size, unit="clip")


def strip(files: list[Path]) -> Image.Image:
    """What the overview shows of a line: up to 16 of its frames side by side."""
    frames = sorted(files[0].glob("*.png"), key=natural_key)
    step = -(-len(frames) // OVERVIEW_FRAMES)
    return tiled([open_image(frame) for frame in frames[::step]], OVERVIEW_FRAMES)


def first_frames(given: Any, folder: Path) -> list[Image.Image]:
    """The pictures that a line names: a picture, a video, an animation, a folder of frames, or a list of pictures.

    Names are relative to the prompt file.

    Raises:
        TypeError: it names none.
        FileNotFoundError, ValueError: a file is missing or no picture.
    """
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"first_frames is {given!r}; expected a file name or a list of them")
    return Video.open([folder / name for name in names]).images()
