"""`emu generate-videos`: generate one clip per prompt, as frames, as GIF, and as MP4 if PyAV is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emu.cli.batch import SETTINGS, Batch
from emu.cli.batch_options import load, parser
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
EXTRA = ("first_frames", "last_frames", "overlap")
OVERVIEW_FRAMES = 16


def main(arguments: Sequence[str]) -> int:
    """Run `emu generate-videos`.

    Returns:
        The exit code: 1 where a line of a file was bad, 0 otherwise.
    """
    words = parser(
        "generate-videos",
        "Generate one clip per prompt. Run it again to resume.",
        "size, frames, fps, guidance_scale, negative_prompt, temperature, top_k, top_p, first_frames (a picture, an animation or a "
        'video, or a list of pictures; or {"video": file, "fps": 8, "start": 0, "frames": 4}), last_frames (likewise), overlap',
    )
    words.add_argument("--frames", type=int, help="number of frames per clip")
    words.add_argument("--fps", type=float, help="frames per second")
    words.add_argument(
        "--overlap",
        type=int,
        help="make clips longer than those seen in training, in parts that overlap by this many frames",
    )
    options = words.parse_args(arguments)
    emu = load(options)
    lines: list[dict[str, Any]] = [{}] if options.overlap is None else [{"overlap": options.overlap}]
    batch = Batch("emu generate-videos", options, emu, "video", "clip", VIDEO_SETTINGS, EXTRA, lines, 1, clip_suffix())

    def prepare(request: Request) -> tuple[Any, Video | None, Video | None]:
        return batch.document(request), given_frames(request, "first_frames"), given_frames(request, "last_frames")

    def generate(requests: list[Request], prepared: list[tuple[Any, ...]]) -> Iterator[VideoResult]:
        documents, *ends = zip(*prepared, strict=True)
        first, last = (None if clips[0] is None else list(clips) for clips in ends)
        given: dict[str, Any] = {
            "first_frames": first,
            "last_frames": last,
            "overlap": requests[0].extra.get("overlap"),
        }
        return emu.iter_videos(list(documents), **given, **batch.drawn(requests))

    return batch.run(prepare, generate, save, strip)


def save(result: VideoResult, stem: Path) -> list[Path]:
    """Write a clip in each form that can be written; returns its files, the folder of frames first."""
    suffixes = ("", ".gif", ".mp4")[: 3 if can_write_mp4() else 2]
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in suffixes]
    for file in files:
        result.save(file)
    return files


def clip_suffix() -> str:
    """Of the one file of a clip among the samples of a tar."""
    return ".mp4" if can_write_mp4() else ".gif"


def strip(files: list[Path]) -> Image.Image:
    """What the overview shows of a request: up to 16 of its frames side by side."""
    if files[0].is_dir():
        frames = [open_image(frame) for frame in sorted(files[0].glob("*.png"), key=natural_key)]
    else:
        frames = list(map(Image.fromarray, Video.open(files[0]).frames))
    return tiled(frames[:: -(-len(frames) // OVERVIEW_FRAMES)], OVERVIEW_FRAMES)


def given_frames(request: Request, key: str) -> Video | None:
    """The clip that a request begins or ends with, at its size and rate; None where nothing is given.

    Args:
        request: of a line.
        key: "first_frames" or "last_frames".

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read.
    """
    if key not in request.extra:
        return None
    given = request.extra[key]
    item = given if isinstance(given, dict) else {"frames": given}
    if kind_of(item) not in ("frames", "video"):
        raise BadLine("wrong value", f"{key} is {shown(given)}; expected file names, or an object with 'video'")
    return read_clip(item, request.folder, request.settings.size, request.settings.fps)
