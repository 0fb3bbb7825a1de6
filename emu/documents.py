"""What a user writes (text, pictures, clips in order), what a layout reads (segments) and what a model reads (ids with weights)."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu_tokenizers.pixels.images import to_rgb
from emu_tokenizers.pixels.videos import read_clip


class Video:
    """A clip; `Video.open` reads one from a file.

    Args:
        frames: PIL images of one size and any mode, or a uint8 array (T, H, W, 3).
        fps: frames per second, positive.

    Attributes:
        frames: uint8 array (T, H, W, 3).
        fps: frames per second.

    Raises:
        ValueError: no frames, frames of unequal sizes, an array of another shape, or a rate that is not positive.
        TypeError: frames of another type.
    """

    def __init__(self, frames: Sequence[Image.Image] | np.ndarray, fps: float = 8) -> None:
        self.frames = _frames_array(frames)
        if not np.isfinite(fps) or fps <= 0:
            raise ValueError(f"fps is {fps}; expected a positive number of frames a second")
        self.fps = int(fps) if float(fps).is_integer() else float(fps)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        fps: float | None = None,
        start: float = 0.0,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Video:
        """Read a clip from a video file, an animated picture (GIF, WebP, PNG, AVIF), or pictures that are its frames.

        Frames are sampled at even intervals, whatever the stored timestamps, upright and in RGB. Only what is needed is decoded.

        Args:
            path: the file, a folder of pictures (in natural order: 2.png before 10.png), or a list of picture files; a list of one file
                means that file's whole clip.
            fps: frames per second of the clip; None is the file's own rate, or 8 for pictures, which have none.
            start: time of the first frame in seconds.
            frames: maximum number of frames, None for all.
            size: (height, width) to which frames are center-cropped and resized; None keeps the file's.

        Raises:
            FileNotFoundError: there is no such file, or no picture in the folder.
            BadPicture: a ValueError that names the file: it cannot be read, is too large, or has no frames from `start` on.
            ModuleNotFoundError: it is a video file, and PyAV is not installed.
            TypeError, ValueError: an argument is invalid.
        """
        return cls(*read_clip(path, fps=fps, start=start, frames=frames, size=size))

    def __len__(self) -> int:
        return len(self.frames)

    def images(self) -> list[Image.Image]:
        """The frames as PIL images."""
        return [Image.fromarray(frame) for frame in self.frames]

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames of {height}x{width}, {self.fps} fps)"


def _frames_array(frames: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
    if isinstance(frames, np.ndarray):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"video frames are {frames.dtype} {frames.shape}; expected uint8 (T, H, W, 3)")
        if 0 in frames.shape:
            raise ValueError(f"a video of shape {frames.shape} is empty; it needs at least one frame and one pixel")
        return frames
    if not isinstance(frames, Sequence) or not all(isinstance(frame, Image.Image) for frame in frames):
        raise TypeError(
            f"video frames are a list of PIL images or a uint8 array (T, H, W, 3), got {type(frames).__name__}; Video.open reads a file"
        )
    if not frames:
        raise ValueError("a video of zero frames; it needs at least one")
    pictures = [to_rgb(frame) for frame in frames]
    sizes = sorted({picture.size for picture in pictures})  # after turning them upright
    if len(sizes) > 1:
        raise ValueError(f"video frames of unequal sizes (width, height) {sizes}; resize them to one size first")
    return np.stack([np.asarray(picture) for picture in pictures])


class Text(NamedTuple):
    """A piece of text of a training document with its own loss weight: `Text("Describe it.", weight=0.0)` is a prompt."""

    text: str
    weight: float = 1.0


class Plan(str):
    """Text that a model writes for itself before it continues (Emu3.5): `Plan("First the sky.", scope="image")`.

    Attributes:
        scope: what it plans, "document" or the next "image".
    """

    scope: str

    def __new__(cls, text: str, scope: str = "document") -> Plan:
        plan = super().__new__(cls, text)
        plan.scope = scope
        return plan

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan, (str(self), self.scope)


@dataclass(frozen=True)
class TextSegment:
    """Tokenized text.

    Attributes:
        ids: (n,) int64 ids of the vocabulary's text range.
        weight: loss weight of each of its tokens.
        plan: what it plans ("document", "image") where it is a `Plan`, else empty.
    """

    ids: Tensor
    weight: float = 1.0
    plan: str = ""

    def __repr__(self) -> str:
        plan = f", plan of the {self.plan}" if self.plan else ""
        return f"TextSegment({len(self.ids)} ids{plan}, weight {self.weight:g})"


@dataclass(frozen=True)
class CodeSegment:
    """A grid of codes of one modality.

    Attributes:
        modality: name of the registered modality.
        codes: int64, 0-based; the modality's grid, with a last axis if it has several codebooks.
        meta: what the grid does not say, e.g. the true number of frames and their rate.
        weight: loss weight of each of its codes.
        hidden: bool, one per cell of the grid: the cells that are shown as holes and written after the others (infill), at least
            one; None for a block written in order.
    """

    modality: str
    codes: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    hidden: Tensor | None = None

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.codes.shape))
        meta = f", {reprlib.repr(dict(self.meta))}" if self.meta else ""
        hidden = "" if self.hidden is None else f", {int(self.hidden.sum())} cells hidden"
        return f"CodeSegment({self.modality!r}, {grid} codes{meta}, weight {self.weight:g}{hidden})"


Segment = TextSegment | CodeSegment


class Span(NamedTuple):
    """Where a segment lies in a document.

    Attributes:
        start: its first token.
        length: number of its tokens, including header and end marker.
        modality: "text" or the name of the registered modality.
        grid: shape of its codes; empty for text.
        meta: what the grid does not say, as in `CodeSegment`.
    """

    start: int
    length: int
    modality: str = "text"
    grid: tuple[int, ...] = ()
    meta: Mapping[str, Any] = {}


@dataclass(frozen=True)
class TokenDocument:
    """A document as the model reads it.

    Attributes:
        ids: (n,) int64.
        weights: (n,) float32; `weights[i]` weights the prediction *of* token i, 0 for tokens that the grammar forces.
        spans: where its segments lie, in order; empty where that is unknown.
    """

    ids: Tensor
    weights: Tensor
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != torch.int64 or self.weights.shape != self.ids.shape:
            raise ValueError(
                f"a document needs ids (n,) int64 and weights (n,), got {tuple(self.ids.shape)} {self.ids.dtype} "
                f"and {tuple(self.weights.shape)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        kinds = ", ".join(span.modality for span in self.spans)
        return f"TokenDocument({len(self)} ids{kinds and ': ' + reprlib.repr(kinds)}, {int((self.weights > 0).sum())} of them weighed)"
