"""Threads for the vision tokenizer's work, by its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from PIL import Image

from emu.documents import Video
from emu.generation.threads import threads_for
from emu.multimodal_tokenizer import MultimodalTokenizer


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
