"""`emu generate-videos`: one clip for each prompt, as frames, as GIF, and as MP4 where PyAV is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emu.cli.batch import SETTINGS, Batch, load, parser
from emu.cli.prompts import Request
from emu.data.tokenizing.document_reader import kind_of
from emu.data.tokenizing.named_files import read_clip
from emu.documents import Video
from emu.lines import BadLine, shown
from emu.media import can_write_mp4, tiled
from emu.pipeline import VideoResult
from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import open_image

VIDEO_SETTINGS = (*SETTINGS, "frames", "fps")
OVERVIEW_FRAMES = 16


def main(arguments: Sequence[str]) -> int:
    """Run `emu generate-videos`.

    Returns:
        The exit code: 1 where a line of a file was bad, 0 otherwise.
    """
    words = parser(
        "generate-videos",
        "Make one clip for each prompt. Run it again to go on after a stop.",
        "size, frames, fps, guidance_scale, negative_prompt, temperature, top_k, top_p, first_frames (a picture, an animation or a "
        'video, or a list of pictures; or {"video": file, "fps": 8, "start": 0, "frames": 4})',
    )
    words.add_argument("--frames", type=int, help="length of the clips")
    words.add_argument("--fps", type=float, help="frames a second")
    options = words.parse_args(arguments)
    emu = load(options)
    batch = Batch(
        "emu generate-videos", options, emu, "video", "clip", VIDEO_SETTINGS, extra=("first_frames",), columns=1
    )

    def prepare(request: Request) -> tuple[Any, Video | None]:
        return batch.document(request), first_frames(request)

    def generate(requests: list[Request], prepared: list[tuple[Any, Video | None]]) -> Iterator[VideoResult]:
        documents, beginnings = zip(*prepared, strict=True)
        begun = None if beginnings[0] is None else list(beginnings)
        return emu.iter_videos(list(documents), first_frames=begun, **batch.drawn(requests))

    return batch.run(prepare, generate, save, strip)


def save(result: VideoResult, stem: Path) -> list[Path]:
    """Write a clip in each form that can be written; returns its files, the folder of frames first."""
    suffixes = ("", ".gif", ".mp4") if can_write_mp4() else ("", ".gif")
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in suffixes]
    for file in files:
        result.save(file)
    return files


def strip(files: list[Path]) -> Image.Image:
    """What the overview shows of a request: up to 16 of its frames side by side."""
    frames = sorted(files[0].glob("*.png"), key=natural_key)
    step = -(-len(frames) // OVERVIEW_FRAMES)
    return tiled([open_image(frame) for frame in frames[::step]], OVERVIEW_FRAMES)


def first_frames(request: Request) -> Video | None:
    """The clip that a request begins with, at its size and rate; None where it begins from nothing.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read.
    """
    if "first_frames" not in request.extra:
        return None
    given = request.extra["first_frames"]
    item = given if isinstance(given, dict) else {"frames": given}
    if kind_of(item) not in ("frames", "video"):
        raise BadLine("wrong value", f"first_frames is {shown(given)}; expected file names, or an object with 'video'")
    return read_clip(item, request.folder, request.settings.size, request.settings.fps)
