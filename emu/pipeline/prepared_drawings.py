"""A generation call between its two halves: prepared blocks, which any engine may generate, and how their codes become results."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from emu.documents import CodeSegment
from emu.generation.limits import warn_caller
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.grid_drawing import GridDrawing
from emu.pipeline.grid_requests import PreparedBlock
from emu.pipeline.masked_pictures import MaskedPicture
from emu.pipeline.results import ImageResult, VideoResult
from emu.pipeline.vision_work import vision_threads

Result = TypeVar("Result", ImageResult, VideoResult)


@dataclass(frozen=True)
class PreparedDrawing(ABC, Generic[Result]):
    """A request, checked and encoded: `Emu.iter_images` runs it directly, a server in its own batches.

    Attributes:
        drawing: how blocks are generated here.
        blocks: what to generate, in the order of the results.
        about: what all results depend on besides prompt, size and noise.
        model: name and fingerprint.
        beyond: what in it the model was not trained for, in words; empty if it was trained for all of it.
    """

    drawing: GridDrawing
    blocks: Sequence[PreparedBlock]
    about: Mapping[str, Any]
    model: str
    beyond: str

    @abstractmethod
    def finish(self, block: PreparedBlock, codes: Tensor) -> Result:
        """Return the result of one of the blocks.

        Args:
            block: of these.
            codes: (*grid) int64 on the CPU, generated for it.
        """

    def results(self, progress: bool) -> Iterator[Result]:
        """Generate the blocks and finish each as soon as those before it are.

        Raises:
            ValueError: one of them does not fit in memory; raised at once, before anything is generated.
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: a single block does not fit.
        """
        if self.beyond:
            warn_caller(f"{self.beyond}; expect poor results")
        self.drawing.check(self.blocks)
        return self.drawing.made(self.blocks, self.finish, progress=progress)

    def told_of(self, block: PreparedBlock) -> tuple[str, int, dict[str, Any]]:
        """Prompt, seed and settings of the result of a block."""
        return block.document.words, block.seed, {**block.about, **self.about}


class PreparedImages(PreparedDrawing[ImageResult]):
    """Pictures to generate."""

    def finish(self, block: PreparedBlock, codes: Tensor) -> ImageResult:
        """The picture of a block, see `PreparedDrawing.finish`."""
        return ImageResult(decoded_block(self.drawing.tokenizer, block, codes), codes, *self.told_of(block), self.model)


@dataclass(frozen=True)
class PreparedMasks(PreparedImages):
    """Pictures to redraw in part.

    Attributes:
        masked: the given picture of each document.
    """

    masked: Sequence[MaskedPicture]

    def finish(self, block: PreparedBlock, codes: Tensor) -> ImageResult:
        """The given picture with what was drawn of it."""
        result = super().finish(block, codes)
        over = self.masked[block.document.number].over(result.image)
        return replace(result, image=over, decoded=result.image)


@dataclass(frozen=True)
class PreparedVideos(PreparedDrawing[VideoResult]):
    """Clips to generate.

    Attributes:
        fps: frames per second.
    """

    fps: float

    def finish(self, block: PreparedBlock, codes: Tensor) -> VideoResult:
        """The clip of a block, see `PreparedDrawing.finish`."""
        clip = decoded_block(self.drawing.tokenizer, block, codes)
        return VideoResult(clip.images(), codes, self.fps, *self.told_of(block), self.model)


def decoded_block(tokenizer: MultimodalTokenizer, block: PreparedBlock, codes: Tensor) -> Any:
    """Decode the codes (*grid) of a block to its picture or clip."""
    with vision_threads(tokenizer, math.prod(block.grid)):
        return tokenizer.decode_segment(CodeSegment(block.modality, codes, block.meta))
