"""Still images: a grid (height, width) of the vision tokenizer's codes, introduced by "height*width" as Emu3 writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from emu.documents import CodeSegment
from emu.modalities.base import Grid, Modality
from emu_tokenizers.pixels.transforms import to_image, to_pixels
from emu_tokenizers.vision.coder import VisionCoder

PIXELS_AT_A_TIME = 1 << 17
"""Of pictures that are decoded together: 128 of 32x32; large ones, whose decoding fills the memory, come one by one."""

_META = re.compile(r"([1-9]\d{0,5})\*([1-9]\d{0,5})")


class ImageModality(Modality):
    """PIL images in, PIL images out; the meta text gives the grid in codes, not pixels (Emu3 `processing_emu3.py`)."""

    name = "image"
    rank = 2
    codebook = "vision"
    codec = "vision"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Image.Image)

    def encode(self, value: Image.Image, codec: VisionCoder) -> CodeSegment:
        pixels = to_pixels(value).to(device=codec.device, dtype=codec.dtype)  # (3, H, W)
        return CodeSegment(self.name, codec.encode(pixels[None])[0].cpu())

    @torch.no_grad()
    def decode(self, segment: CodeSegment, codec: VisionCoder) -> Image.Image:
        return to_image(codec.decode(segment.codes[None].to(codec.device))[0])

    @torch.no_grad()
    def decode_all(self, segments: Sequence[CodeSegment], codec: VisionCoder) -> list[Image.Image]:
        codes = torch.stack([segment.codes for segment in segments])
        height, width = (codec.spatial_factor * length for length in codes.shape[1:3])
        parts = codes.split(max(1, PIXELS_AT_A_TIME // (height * width)))
        return [to_image(pixels) for part in parts for pixels in codec.decode(part.to(codec.device))]

    def meta_text(self, grid: Grid, meta: Mapping[str, Any]) -> str:
        return f"{grid[0]}*{grid[1]}"

    def parse_meta(self, text: str) -> tuple[Grid, dict[str, Any]] | None:
        match = _META.fullmatch(text)
        return ((int(match[1]), int(match[2])), {}) if match else None

    def codebook_sizes(self, codec: VisionCoder) -> tuple[int, ...]:
        return codec.codebook_sizes
