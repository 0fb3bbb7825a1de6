"""Clips: a grid (time, height, width) of the vision tokenizer's codes.

The meta text carries resolution, frame rate and duration in plain text (arXiv 2409.18869, section 2.4). Its wording was never released, so
this is ours: "2*4*4 8f 8fps 1s", grid, true number of frames, rate, duration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from emu.documents import CodeSegment, Video
from emu.modalities.base import Grid, Modality
from emu_tokenizers.pixels.transforms import to_frames, to_pixels
from emu_tokenizers.vision.coder import VisionCoder

_NUMBER = r"(\d{1,6}(?:\.\d+)?)"
_META = re.compile(rf"([1-9]\d{{0,5}})\*([1-9]\d{{0,5}})\*([1-9]\d{{0,5}}) ([1-9]\d{{0,6}})f {_NUMBER}fps {_NUMBER}s")


class VideoModality(Modality):
    """`Video` in, `Video` out; `meta` holds `frames`, the true number of frames, and `fps`."""

    name = "video"
    rank = 3
    codebook = "vision"
    codec = "vision"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Video)

    def encode(self, value: Video, codec: VisionCoder) -> CodeSegment:
        frames = torch.stack([to_pixels(frame) for frame in value.frames])  # (T, 3, H, W)
        codes = codec.encode(frames[None].to(device=codec.device, dtype=codec.dtype))[0].cpu()
        return CodeSegment(self.name, codes, {"frames": len(value), "fps": value.fps})

    @torch.no_grad()
    def decode(self, segment: CodeSegment, codec: VisionCoder) -> Video:
        pixels = codec.decode(segment.codes[None].to(codec.device), frames=segment.meta["frames"])[0]  # (T, 3, H, W)
        return Video(to_frames(pixels), segment.meta["fps"])

    def meta_text(self, grid: Grid, meta: Mapping[str, Any]) -> str:
        frames, fps = meta["frames"], meta["fps"]
        return f"{grid[0]}*{grid[1]}*{grid[2]} {frames}f {fps}fps {frames / fps:.6g}s"

    def parse_meta(self, text: str) -> tuple[Grid, dict[str, Any]] | None:
        match = _META.fullmatch(text)
        if not match:
            return None
        fps = float(match[5])
        if fps <= 0:
            return None
        meta = {"frames": int(match[4]), "fps": int(fps) if fps.is_integer() else fps}
        return (int(match[1]), int(match[2]), int(match[3])), meta

    def codebook_sizes(self, codec: VisionCoder) -> tuple[int, ...]:
        return codec.codebook_sizes
