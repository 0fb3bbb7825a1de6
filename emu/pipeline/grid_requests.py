"""From documents to blocks of codes to draw: ids with the header of the block, what guidance moves away from, and given beginnings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.first_frames import Clip, codes_of_beginning, opened
from emu.pipeline.prompt_documents import PromptDocument, prompt_ids
from emu.pipeline.requests import GenerationDefaults, Size, check_size
from emu.pipeline.trained_limits import block_tasks
from emu.trained import Trained
from emu_tokenizers import VisionTokenizer


@dataclass(frozen=True)
class GridRequest:
    """One block of codes, ready to be drawn.

    Attributes:
        document: what it is drawn after.
        size: (height, width) in pixels.
        modality: name of the registered modality.
        grid: axis lengths of the block, slowest first.
        meta: what the header states besides the grid.
        head: (n,) ids of the document and the header of the block.
        negative: the same for what guidance moves away from.
        given: codes that the block begins with, (k, ...) along its slowest axis; None where it begins from nothing.
        given_frames: frames of a clip that those codes stand for.
        seed, stream: of its noise.
        tokens: of the whole sequence, the block included.
    """

    document: PromptDocument
    size: Size
    modality: str
    grid: Grid
    meta: Mapping[str, Any]
    head: Tensor
    negative: Tensor
    given: Tensor | None
    given_frames: int
    seed: int
    stream: int
    tokens: int

    @property
    def kind(self) -> Hashable:
        """Blocks of one kind are drawn together."""
        return self.grid, tuple(self.meta.items()), 0 if self.given is None else len(self.given)

    @property
    def about(self) -> dict[str, Any]:
        """What a result tells of it beside words and seed, of JSON's types."""
        document = self.document.told()
        told: dict[str, Any] = {} if document is None else {"document": document}
        told |= {"first_frames": self.given_frames} if self.given_frames else {}
        return {"size": list(self.size), **told, "stream": self.stream}


def with_streams(requests: Sequence[GridRequest], count: int) -> list[GridRequest]:
    """N blocks for each that differ in their noise, side by side."""
    return [replace(request, stream=stream) for request in requests for stream in range(count)]


def clip_grid(vision: VisionTokenizer, size: Size, frames: int) -> tuple[int, int, int]:
    """(time, height, width) in codes of a clip of this size in pixels; a picture has the last two."""
    height, width = size[0] // vision.spatial_factor, size[1] // vision.spatial_factor
    return -(-frames // vision.temporal_factor), height, width


@dataclass(frozen=True)
class RequestReader:
    """Makes a block to draw of what is asked for, and finds whatever is wrong with it before any is drawn.

    Pictures are read and encoded one document at a time, so that none but ids stay in memory.

    Attributes:
        tokenizer: of the model.
        trained: what the model was trained for.
        positions: of the model.
        modality: of the blocks.
        settings: of the call; its size where clips begin with a file and no size is asked for.
        meta: what the headers state besides the grid.
    """

    tokenizer: MultimodalTokenizer
    trained: Trained
    positions: int
    modality: str
    settings: GenerationDefaults
    meta: Mapping[str, Any]

    def check_tasks(self, documents: Sequence[PromptDocument], given_frames: int = 0) -> None:
        """Raise ValueError where the model was not trained to draw after one of some documents."""
        for document in documents:
            self.trained.check_task(*block_tasks(document.kinds(self.tokenizer), self.modality, given_frames))

    def read(self, document: PromptDocument, size: Size | None, seed: int, beginning: Clip | None) -> GridRequest:
        """The block after one document.

        Args:
            document: what it is drawn after.
            size: (height, width) in pixels; None for that of the beginning.
            seed: of its noise.
            beginning: how a clip begins, None for a block that begins from nothing.

        Raises:
            FileNotFoundError: there is no such file of first frames.
            ValueError: a picture cannot be read or is of a size that the tokenizer refuses, or a document with pictures leaves no room
                for the block.
            TypeError: an item is of no known kind.
        """
        given = None if beginning is None else opened(beginning, self.settings.updated(size=size))
        if given is not None:
            self.check_tasks([document], len(given))
        if size is None:
            assert given is not None
            size = check_size(given.frames.shape[1:3], self._factor)
        codes = None if given is None else codes_of_beginning(self.tokenizer, given, self.settings.frames, size)
        assert self.tokenizer.vision is not None
        rank = self.tokenizer.layout.modality(self.modality).rank
        grid = clip_grid(self.tokenizer.vision, size, self.settings.frames)[-rank:]
        items = document.segments(self.tokenizer, self.settings.updated(size=size))
        head, negative = prompt_ids(
            self.tokenizer, items, self.settings.negative_prompt, self.modality, grid, self.meta
        )
        tokens = max(len(head), len(negative)) + self._room(document, head, grid)
        frames = 0 if given is None else len(given)
        return GridRequest(
            document, size, self.modality, grid, self.meta, head, negative, codes, frames, seed, 0, tokens
        )

    def _room(self, document: PromptDocument, head: Tensor, grid: Grid) -> int:
        """Tokens of the block; raises ValueError where a document with pictures leaves too few for it."""
        block = len(self.tokenizer.layout.block(self.modality, grid))
        if len(head) + block > self.positions and not document.is_text:
            raise ValueError(
                f"prompt {document.number} has {len(head)} tokens and the {self.modality} to draw {block}, more than the model's "
                f"{self.positions} positions; leave out some of its pictures, or make them or what is drawn smaller"
            )
        return block

    @property
    def _factor(self) -> int:
        return 1 if self.tokenizer.vision is None else self.tokenizer.vision.spatial_factor
