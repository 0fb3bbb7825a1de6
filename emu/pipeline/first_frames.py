"""How a clip begins: its first frames, brought to its size and rate, as codes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from emu.documents import CodeSegment, Video
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults, Size
from emu.pipeline.vision_work import cells_of, vision_threads

Clip = Video | np.ndarray | Image.Image | Sequence[Image.Image] | str | os.PathLike


def each_beginning(first_frames: Any, count: int) -> list[Clip | None]:
    """How the clip of each of N prompts begins, not opened yet.

    Args:
        first_frames: None, one clip for all prompts, or a list of one clip per prompt; a clip is a list of PIL images, a uint8 array
            (T, H, W, 3), a `Video`, or the path of a file or a folder of frames, and a single PIL image is a clip of one frame.
        count: N.

    Raises:
        ValueError: another number of clips than prompts.
    """
    several = isinstance(first_frames, list | tuple) and len(first_frames) > 0
    if not several or any(isinstance(item, Image.Image) for item in first_frames):
        return [first_frames] * count
    if len(first_frames) != count:
        raise ValueError(
            f"first_frames holds {len(first_frames)} clips for {count} prompts; give one clip, or one per prompt"
        )
    return list(first_frames)


def opened(frames: Clip, settings: GenerationDefaults) -> Video:
    """A beginning as a clip; a file is brought to the rate and size of the settings.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: something else, or an empty clip.
    """
    if isinstance(frames, Video):
        return frames
    if isinstance(frames, str | os.PathLike):
        return Video.open(frames, fps=settings.fps, frames=settings.frames, size=settings.size)
    return Video([frames] if isinstance(frames, Image.Image) else frames, settings.fps)


def codes_of_beginning(tokenizer: MultimodalTokenizer, clip: Video, frames: int, size: Size) -> Tensor:
    """Codes (t, h, w) of the frames that a clip begins with.

    Args:
        clip: its first frames.
        frames: length of the clip to generate.
        size: its (height, width) in pixels.

    Raises:
        ValueError: the frames have another size, or leave nothing to generate.
    """
    height, width = clip.frames.shape[1:3]
    if (height, width) != tuple(size):
        raise ValueError(
            f"first_frames are {height}x{width}, the clip is {size[0]}x{size[1]}; resize them or change size"
        )
    factor = tokenizer.vision.temporal_factor if tokenizer.vision is not None else 1
    given, all_of_them = -(-len(clip) // factor), -(-frames // factor)
    if given >= all_of_them:
        raise ValueError(
            f"first_frames holds {len(clip)} of {frames} frames, which leaves nothing to generate (codes stand for {factor} frames each); "
            f"ask for more than {given * factor} frames, or give fewer (of a file: Video.open(path, frames=...))"
        )
    with vision_threads(tokenizer, cells_of(tokenizer, [clip])):
        (segment,) = tokenizer.segments(clip)
    assert isinstance(segment, CodeSegment)
    return segment.codes
