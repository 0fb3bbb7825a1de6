"""Headers of the blocks that may follow a document in which the model chooses what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from emu.documents import CodeSegment
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults


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
