"""From prompts to blocks of codes to generate: headers, negative prompts and given beginnings."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from emu.documents import CodeSegment, Video
from emu.generation import Engine, Sampling
from emu.generation.limits import check_whole
from emu.generation.threads import threads_for
from emu.generation.window_choice import Window, check_window
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults, Size

Clip = Video | np.ndarray | Image.Image | Sequence[Image.Image] | str | os.PathLike


class Made(NamedTuple):
    """A generated block: what its codes stand for, the codes, what it was made for, and which of the prompt's blocks it is."""

    value: Any
    codes: Tensor
    prompt: str
    seed: int
    stream: int


@dataclass(frozen=True)
class GridRequests:
    """Blocks of one modality and one grid, `streams` for each prompt, ready to be generated.

    Attributes:
        modality: name of the registered modality.
        grid: axis lengths of a block, slowest first.
        prompts: what they are for.
        seeds: of their noise, one per prompt.
        streams: blocks per prompt.
        meta: what the header states besides the grid.
        given: codes that each prompt's blocks begin with; empty where they begin from nothing.
        heads: ids of each prompt and the header of its block.
        negative: ids of the negative prompt and the header.
        tokens: of the longest sequence.
    """

    modality: str
    grid: Grid
    prompts: Sequence[str]
    seeds: Sequence[int]
    streams: int
    meta: Mapping[str, Any]
    given: Sequence[Tensor]
    heads: Sequence[Tensor]
    negative: Tensor
    tokens: int

    @classmethod
    def of(
        cls,
        tokenizer: MultimodalTokenizer,
        modality: str,
        grid: Grid,
        prompts: Sequence[str],
        seeds: Sequence[int],
        streams: int,
        *,
        negative_prompt: str,
        meta: Mapping[str, Any] | None = None,
        given: Sequence[Tensor] = (),
    ) -> GridRequests:
        """Tokenise the prompts; an empty one is the header alone. See the attributes."""
        meta = meta or {}
        heads = [
            tokenizer.prompt([words] if words else [], modality, grid, meta) for words in (*prompts, negative_prompt)
        ]
        tokens = max(map(len, heads)) + len(tokenizer.layout.block(modality, grid))
        return cls(modality, grid, prompts, seeds, streams, meta, given, heads[:-1], heads[-1], tokens)

    def generate(
        self,
        engine: Engine,
        tokenizer: MultimodalTokenizer,
        sampling: Sampling,
        *,
        window: Window,
        batch_size: int,
        progress: bool,
    ) -> list[Made]:
        """Generate all blocks, those of a prompt side by side; `batch_size` blocks are drawn at a time, but whole prompts.

        Raises:
            TypeError, ValueError: a number is not positive and whole.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        limit = max(1, check_whole("batch_size", batch_size, least=1) // self.streams)
        window = check_window(window)
        made: list[Made] = []
        total = len(self.heads) * self.streams
        with tqdm(total=total, unit=self.modality, disable=not progress, dynamic_ncols=True) as bar:
            for start in range(0, len(self.heads), limit):
                part = slice(start, start + limit)
                codes = engine.generate_grids(
                    self.heads[part],
                    [self.negative] * len(self.heads[part]),
                    self.modality,
                    self.grid,
                    sampling,
                    seed=list(self.seeds[part]),
                    streams=self.streams,
                    prefix_codes=torch.stack(list(self.given[part])) if self.given else None,
                    window=window,
                ).cpu()
                for number, one in enumerate(codes):
                    prompt, stream = start + number // self.streams, number % self.streams
                    with vision_threads(tokenizer, math.prod(self.grid)):
                        value = tokenizer.decode_segment(CodeSegment(self.modality, one, self.meta))
                    made.append(Made(value, one, self.prompts[prompt], self.seeds[prompt], stream))
                bar.update(len(codes))
        return made


def vision_threads(tokenizer: MultimodalTokenizer, cells: int) -> AbstractContextManager[None]:
    """Threads for the vision tokenizer's work on `cells` codes: each weight of a convolution is used once or more for each of them."""
    vision = tokenizer.vision
    if vision is None:
        return nullcontext()
    return threads_for(cells * sum(weight.numel() for weight in vision.parameters()) // 2, vision.device)


def cells_of(tokenizer: MultimodalTokenizer, items: Sequence[Any]) -> int:
    """Codes of the largest picture or clip among the items of a document; 0 without any."""
    vision = tokenizer.vision
    if vision is None:
        return 0
    sizes = [item.size for item in items if isinstance(item, Image.Image)]
    sizes += [item.frames.shape[:3] for item in items if isinstance(item, Video)]
    return max((math.prod(size) // vision.spatial_factor**2 for size in sizes), default=0)


def as_clips(first_frames: Any, count: int, settings: GenerationDefaults) -> list[Video]:
    """One beginning per prompt, or none at all.

    Args:
        first_frames: None, one clip for all prompts, or a list of one clip per prompt; a clip is a list of PIL images, a uint8 array
            (T, H, W, 3), a `Video`, or the path of a file or a folder of frames, and a single PIL image is a clip of one frame.
        count: number of prompts.
        settings: rate and length of the clips, and the size that files are brought to.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: something else.
        ValueError: another number of clips than prompts, an empty clip, or clips of unequal length or size.
    """
    if first_frames is None:
        return []
    several = isinstance(first_frames, list | tuple) and len(first_frames) > 0
    if several and not any(isinstance(item, Image.Image) for item in first_frames):
        clips = [_as_clip(item, settings) for item in first_frames]
        if len(clips) != count:
            raise ValueError(
                f"first_frames holds {len(clips)} clips for {count} prompts; give one clip, or one per prompt"
            )
    else:
        clips = [_as_clip(first_frames, settings)] * count
    shapes = sorted({clip.frames.shape[:3] for clip in clips})
    if len(shapes) > 1:
        raise ValueError(f"first frames of unequal (frames, height, width) {shapes}; generate them in separate calls")
    return clips


def _as_clip(frames: Any, settings: GenerationDefaults) -> Video:
    if isinstance(frames, Video):
        return frames
    if isinstance(frames, str | os.PathLike):
        return Video.open(frames, fps=settings.fps, frames=settings.frames, size=settings.size)
    return Video([frames] if isinstance(frames, Image.Image) else frames, settings.fps)


def beginning(tokenizer: MultimodalTokenizer, clip: Video, frames: int, size: Size) -> Tensor:
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


def free_headers(tokenizer: MultimodalTokenizer, prompt: Tensor) -> list[list[int]]:
    """Headers for a model that chooses the size of its pictures: that of the only block of its prompt, else any of two digits a side.

    As `logits_processor.py` of baaivision/Emu3.5 has it where no size is given.
    """
    found = _headers(tokenizer, prompt, {})
    if len(found) == 1 or "image" not in tokenizer.layout.modalities:
        return found
    sides = range(10, 100)
    return found + [tokenizer.layout.header("image", (height, width)) for height in sides for width in sides]


def headers_after(
    tokenizer: MultimodalTokenizer, prompt: Tensor, clip: tuple[int, int, int] | None, settings: GenerationDefaults
) -> list[list[int]]:
    """Headers of the blocks that may follow a prompt; `clip` is (time, height, width) in codes, None where the model chooses the size."""
    if clip is None:
        return free_headers(tokenizer, prompt)
    offered = {"image": (clip[1:], {}), "video": (clip, {"frames": settings.frames, "fps": settings.fps})}
    return _headers(tokenizer, prompt, offered)


def _headers(
    tokenizer: MultimodalTokenizer, prompt: Tensor, offered: Mapping[str, tuple[Grid, Mapping[str, Any]]]
) -> list[list[int]]:
    """Headers of the blocks that may stand in a document: those offered, and those that its prompt holds already.

    Args:
        tokenizer: of the document.
        prompt: (n,) int64 ids.
        offered: (grid, meta) by modality; modalities that the layout does not hold are left out.
    """
    layout = tokenizer.layout
    found = [layout.header(name, *block) for name, block in offered.items() if name in layout.modalities]
    for segment in layout.parse(prompt):
        if isinstance(segment, CodeSegment):
            modality = layout.modality(segment.modality)
            grid = modality.check_codes(segment.codes, len(layout.code_ranges(modality.codebook)))
            found.append(layout.header(segment.modality, grid, segment.meta))
    return found
