"""First and last frames of a clip, resampled to its size and rate, as codes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu.documents import CodeSegment, Video
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults, Size
from emu.pipeline.vision_work import cells_of, vision_threads

Clip = Video | np.ndarray | Image.Image | Sequence[Image.Image] | str | os.PathLike


def each_clip(name: str, given: Any, count: int) -> list[Clip | None]:
    """Return the given frames for each of N prompts, not opened yet.

    Args:
        name: of the argument, for messages.
        given: None, one clip for all prompts, or a list of one clip or None per prompt; a clip is a list of PIL images, a uint8 array
            (T, H, W, 3), a `Video`, or the path of a file or a folder of frames, and a single PIL image is a clip of one frame.
        count: N.

    Raises:
        ValueError: the number of clips is not that of the prompts.
    """
    several = isinstance(given, list | tuple) and len(given) > 0
    if not several or any(isinstance(item, Image.Image) for item in given):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{name} holds {len(given)} clips for {count} prompts; give one clip, or one per prompt")
    return list(given)


def opened(frames: Clip, settings: GenerationDefaults) -> Video:
    """Open given frames as a clip; a file is resampled to the rate and size of the settings.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: anything else, or an empty clip.
    """
    if isinstance(frames, Video):
        return frames
    if isinstance(frames, str | os.PathLike):
        return Video.open(frames, fps=settings.fps, frames=settings.frames, size=settings.size)
    return Video([frames] if isinstance(frames, Image.Image) else frames, settings.fps)


def codes_of_beginning(tokenizer: MultimodalTokenizer, clip: Video, frames: int, size: Size) -> Tensor:
    """Encode the frames that a clip begins with: codes (t, h, w).

    Args:
        clip: its first frames.
        frames: length of the clip to generate.
        size: its (height, width) in pixels.

    Raises:
        ValueError: the frames have another size, or leave nothing to generate.
    """
    _check_size("first_frames", clip, size)
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


def clip_between(
    tokenizer: MultimodalTokenizer, beginning: Video | None, ending: Video, frames: int, fps: float, size: Size
) -> CodeSegment:
    """Return a clip whose first and last frames are given and whose others are hidden.

    Codes of a clip's end depend on what comes before it, which is not known yet: for encoding, the frames in between are static. Codes
    cover groups of frames: if the last frames do not fill their first group, their first one is repeated.

    Args:
        tokenizer: with a vision tokenizer.
        beginning: its first frames, None if they are to be generated too.
        ending: its last frames.
        frames, fps: length and rate of the clip.
        size: its (height, width) in pixels.

    Raises:
        ValueError: the frames have another size, or leave nothing to generate.
    """
    first = np.empty((0, *ending.frames.shape[1:]), np.uint8) if beginning is None else beginning.frames
    for name, clip in (("first_frames", beginning), ("last_frames", ending)):
        if clip is not None:
            _check_size(name, clip, size)
    factor = tokenizer.vision.temporal_factor if tokenizer.vision is not None else 1
    begun, ends = -(-len(first) // factor), max(0, frames - len(ending)) // factor
    if begun >= ends:
        raise ValueError(
            f"first_frames and last_frames hold {len(first)} and {len(ending)} of {frames} frames, which leaves nothing to generate (codes "
            f"stand for {factor} frames each); ask for more frames, or give fewer"
        )
    still = first[-1:] if len(first) else ending.frames[:1]
    tail = np.repeat(ending.frames[:1], frames - len(ending) - ends * factor, axis=0)
    between = np.repeat(still, ends * factor - len(first), axis=0)
    whole = Video(np.concatenate([first, between, tail, ending.frames]), fps)
    with vision_threads(tokenizer, cells_of(tokenizer, [whole])):
        (segment,) = tokenizer.segments(whole)
    assert isinstance(segment, CodeSegment)
    hidden = torch.zeros(segment.codes.shape[:3], dtype=torch.bool)
    hidden[begun:ends] = True
    return replace(segment, hidden=hidden)


def _check_size(name: str, clip: Video, size: Size) -> None:
    height, width = clip.frames.shape[1:3]
    if (height, width) != tuple(size):
        raise ValueError(f"{name} are {height}x{width}, the clip is {size[0]}x{size[1]}; resize them or change size")
