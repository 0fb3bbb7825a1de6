"""Which parts of a video file become clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emu.data.tokenizing.source_options import SourceOptions
from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.videos import VideoFile


def clip_parts(file: Path | bytes, options: SourceOptions, name: str = "") -> list[dict[str, Any]]:
    """Options of the items that a file becomes ("fps", "start", "frames"): one, or several where clips have a length.

    A file that is shorter than a clip is one clip of all its frames. A file that cannot be read is one part too, so that whoever
    reads it says why.
    """
    part: dict[str, Any] = {} if options.fps is None else {"fps": options.fps}
    if options.clip_frames is None:
        return [part]
    part["frames"] = options.clip_frames
    video = VideoFile(file, name or str(file))
    try:
        _, own_rate = video.sample(frames=1)
        seconds = video.seconds
    except (BadPicture, FileNotFoundError):
        return [part]
    length = options.clip_frames / (options.fps or own_rate)
    stride = options.stride or length
    # A clip that ends a rounding error after the file is whole.
    count = max(1, int((seconds - length) / stride + 1e-6) + 1) if seconds >= length - 1e-6 else 1
    return [{**part, "start": round(number * stride, 6)} for number in range(count)]
