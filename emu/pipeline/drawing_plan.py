"""What generation with a model's folder takes, known from its headers: no weights of the transformer are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.weights import Checkpoint, num_bytes
from emu.families.detection import find_family
from emu.families.language import read_emu_config
from emu.generation.sequence_memory import drawing_memory
from emu.hub.load import read_tokenizer
from emu.modalities import Grid
from emu.pipeline.drawing_memory import DrawingMemory, decoding_memory
from emu.pipeline.grid_requests import clip_grid
from emu.pipeline.model_folder import read_defaults

PROMPT = 128
"""Tokens before a block that are reckoned with: a long caption and the header."""


@dataclass(frozen=True)
class DrawingPlan:
    """What generation takes.

    Attributes:
        grid: of a block, in codes.
        tokens: of a block, including the marks between its codes.
        guided: whether a second row runs.
        weights: bytes of the transformer, as its files hold them.
        vision: bytes of the vision tokenizer.
        memory: on top of the weights, see `DrawingMemory`.
        positions: of the model; blocks beyond them come out poor.
    """

    grid: Grid
    tokens: int
    guided: bool
    weights: int
    vision: int
    memory: DrawingMemory
    positions: int

    def total(self, batch: int) -> int:
        """Return the peak in bytes with this many blocks in a batch."""
        return self.weights + self.vision + self.memory.peak(batch)


def drawing_plan(
    path: str | Path,
    size: Sequence[int] | None = None,
    frames: int | None = None,
    guidance_scale: float | None = None,
    device: str = "cuda",
) -> DrawingPlan:
    """Plan the generation of one block at a time.

    Args:
        path: folder, bundled name or hub repository of the model.
        size: (height, width) in pixels; the model's own by default.
        frames: of a clip; None plans a picture.
        guidance_scale: the model's own by default; 1 needs no second row.
        device: device type, which decides how prompts are computed.

    Raises:
        FileNotFoundError, ValueError: the folder cannot be read, or does not know a size.
    """
    folder = find_model_folder(path)
    family, config = find_family(folder), read_emu_config(folder)
    tokenizer = read_tokenizer(folder)
    defaults, _ = read_defaults(folder, tokenizer)
    settings = defaults.updated(size=None if size is None else tuple(size), guidance_scale=guidance_scale)
    vision = tokenizer.vision
    if vision is None or settings.size is None:
        raise ValueError(f"{folder} has no size of its own for pictures; give one, --size HEIGHT WIDTH")
    off = [side for side in settings.size if side % vision.spatial_factor]
    if off:
        raise ValueError(
            f"size {settings.size} has a side of {off[0]} pixels; expected multiples of {vision.spatial_factor}"
        )
    whole = clip_grid(vision, settings.size, frames or 1)
    modality = "image" if frames is None else "video"
    grid: Grid = whole[1:] if frames is None else whole
    template = tokenizer.layout.block(modality, grid)
    checkpoint = Checkpoint.open(folder)
    entries = [entry for name, entry in checkpoint.entries.items() if family.of_language_model(name)]
    guided = settings.guidance_scale != 1
    sequence = drawing_memory(
        config,
        entries[0].dtype,
        torch.device(device),
        prompt=PROMPT,
        block=len(template),
        candidates=int(template.count.max()),
        guided=guided,
    )
    memory = DrawingMemory(sequence, decoding_memory(vision, grid), 0)
    of_vision = sum(weight.numel() * weight.element_size() for weight in vision.parameters())
    weights = sum(map(num_bytes, entries))
    return DrawingPlan(grid, len(template), guided, weights, of_vision, memory, config.max_position_embeddings)
