"""From documents to blocks of codes to generate: ids with headers, negative prompts, and given frames and cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from emu.documents import CodeSegment, Video
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.first_frames import Clip, clip_between, codes_of_beginning, opened
from emu.pipeline.long_clips import ClipParts
from emu.pipeline.prompt_documents import PromptDocument, prompt_ids
from emu.pipeline.requests import GenerationDefaults, Size, check_size
from emu.pipeline.trained_limits import block_tasks, check_infill
from emu.trained import Trained
from emu_tokenizers import VisionTokenizer


@dataclass(frozen=True)
class PreparedBlock:
    """One block of codes, ready to be generated.

    Attributes:
        document: the document that it follows.
        size: (height, width) in pixels.
        modality: name of the registered modality.
        grid: axis lengths of the block, slowest first; of a clip in parts, those of a part.
        meta: what decoding needs besides the codes.
        parts: of a clip, None for pictures.
        head: (n,) ids of the document and the header of the block.
        negative: the same for the negative prompt.
        given: codes that the block begins with, (k, ...) along its slowest axis; None if there are none. Those of the whole grid
            if some of its cells are hidden.
        hidden: bool (*grid), the cells to generate if the others are given; None for a block generated in order.
        first_frames, last_frames: how many frames of a clip are given.
        seed, stream: of its noise.
        tokens: of the whole sequence, including the block.
    """

    document: PromptDocument
    size: Size
    modality: str
    grid: Grid
    meta: Mapping[str, Any]
    parts: ClipParts | None
    head: Tensor
    negative: Tensor
    given: Tensor | None
    hidden: Tensor | None
    first_frames: int
    last_frames: int
    seed: int
    stream: int
    tokens: int

    @property
    def kind(self) -> Hashable:
        """Blocks of one kind are generated together."""
        given = 0 if self.given is None else len(self.given)
        return self.grid, tuple(self.meta.items()), self.parts, given, self.hidden is None

    @property
    def about(self) -> dict[str, Any]:
        """What a result records of it besides words and seed, as JSON types."""
        document = self.document.told()
        told: dict[str, Any] = {} if document is None else {"document": document}
        for name in ("first_frames", "last_frames"):
            told |= {name: getattr(self, name)} if getattr(self, name) else {}
        return {"size": list(self.size), **told, "stream": self.stream}


def with_streams(requests: Sequence[PreparedBlock], count: int) -> list[PreparedBlock]:
    """Return N blocks for each, which differ in their noise, next to each other."""
    return [replace(request, stream=stream) for request in requests for stream in range(count)]


def clip_grid(vision: VisionTokenizer, size: Size, frames: int) -> tuple[int, int, int]:
    """(time, height, width) in codes of a clip of this size in pixels; a picture has the last two."""
    height, width = size[0] // vision.spatial_factor, size[1] // vision.spatial_factor
    return -(-frames // vision.temporal_factor), height, width


@dataclass(frozen=True)
class RequestReader:
    """Turns requests into blocks to generate, and finds all errors before any is generated.

    Pictures are read and encoded one document at a time, so that only ids stay in memory.

    Attributes:
        tokenizer: of the model.
        trained: what the model was trained for.
        positions: of the model.
        modality: of the blocks.
        settings: of the call; its size applies if clips begin with a file and no size is requested.
        parts: of clips, None for pictures.
    """

    tokenizer: MultimodalTokenizer
    trained: Trained
    positions: int
    modality: str
    settings: GenerationDefaults
    parts: ClipParts | None

    def check_tasks(self, documents: Sequence[PromptDocument], given_frames: int = 0) -> None:
        """Raise ValueError if the model was not trained to generate after one of the documents."""
        for document in documents:
            if document.partial is not None:
                check_infill(self.trained, self.tokenizer, self.modality)
            else:
                self.trained.check_task(*block_tasks(document.kinds(self.tokenizer), self.modality, given_frames))
        if self.parts is not None and self.parts.overlap:
            self.trained.check_task("video_continuation")

    def read(
        self, document: PromptDocument, size: Size | None, seed: int, beginning: Clip | None, ending: Clip | None
    ) -> PreparedBlock:
        """Prepare the block after one document.

        Args:
            document: the document that it follows.
            size: (height, width) in pixels; None for that of the given frames. A block with hidden cells has its own size.
            seed: of its noise.
            beginning, ending: first and last frames of a clip, None if not given.

        Raises:
            FileNotFoundError: there is no such file of first or last frames.
            ValueError: a picture cannot be read or has a size that the tokenizer rejects, or a document with pictures leaves no room
                for the block.
            TypeError: an item has an unknown type.
        """
        settings = self.settings.updated(size=size)
        first, last = (None if clip is None else opened(clip, settings) for clip in (beginning, ending))
        if last is not None:
            check_infill(self.trained, self.tokenizer, self.modality)
        elif first is not None:
            self.check_tasks([document], len(first))
        frames = first or last
        if size is None:
            assert frames is not None
            size = check_size(frames.frames.shape[1:3], self._factor)
        codes, hidden, size = self._given(document, size, first, last)
        assert self.tokenizer.vision is not None
        rank = self.tokenizer.layout.modality(self.modality).rank
        length = settings.frames if self.parts is None else self.parts.frames
        grid = clip_grid(self.tokenizer.vision, size, length)[-rank:]
        items = document.segments(self.tokenizer, settings.updated(size=size))
        stated = {} if self.parts is None else {"frames": length, "fps": settings.fps}
        head, negative = prompt_ids(self.tokenizer, items, settings.negative_prompt, self.modality, grid, stated)
        return PreparedBlock(
            document=document,
            size=size,
            modality=self.modality,
            grid=grid,
            meta={} if self.parts is None else {"frames": settings.frames, "fps": settings.fps},
            parts=self.parts,
            head=head,
            negative=negative,
            given=codes,
            hidden=hidden,
            first_frames=0 if first is None else len(first),
            last_frames=0 if last is None else len(last),
            seed=seed,
            stream=0,
            tokens=max(len(head), len(negative)) + self._room(document, head, grid, hidden),
        )

    def _given(
        self, document: PromptDocument, size: Size, first: Video | None, last: Video | None
    ) -> tuple[Tensor | None, Tensor | None, Size]:
        """Codes that are given of the block, the cells that are hidden among them, and its size; see `PreparedBlock`."""
        frames, fps, partial = self.settings.frames, self.settings.fps, document.partial
        is_alone = first is None and last is None and not (self.parts is not None and self.parts.overlap)
        if last is not None and partial is None:
            partial, is_alone = clip_between(self.tokenizer, first, last, frames, fps, size), True
        if partial is None:
            return None if first is None else codes_of_beginning(self.tokenizer, first, frames, size), None, size
        assert partial.hidden is not None and self.tokenizer.vision is not None
        height, width = (cells * self._factor for cells in partial.hidden.shape[-2:])
        rank = self.tokenizer.layout.modality(self.modality).rank
        grid = clip_grid(self.tokenizer.vision, (height, width), frames)[-rank:]
        if partial.modality != self.modality or tuple(partial.hidden.shape) != grid or not is_alone:
            raise ValueError(
                f"prompt {document.number} ends in a block of {partial.modality} of which {tuple(partial.hidden.shape)} cells are kept or "
                f"hidden; expected one of {self.modality} of {grid} cells, and neither first or last frames nor overlap beside it"
            )
        return partial.codes, partial.hidden, (height, width)

    def _room(self, document: PromptDocument, head: Tensor, grid: Grid, hidden: Tensor | None) -> int:
        """Tokens of the block; raises ValueError where a document with pictures leaves too few for it."""
        template = self.tokenizer.layout.block(self.modality, grid)
        block = len(template) + (0 if hidden is None else 1 + int(hidden.sum()) * template.codebooks)
        if len(head) + block > self.positions and not (document.is_text and hidden is None):
            raise ValueError(
                f"prompt {document.number} has {len(head)} tokens and the {self.modality} to draw {block}, more than the model's "
                f"{self.positions} positions; leave out some of its pictures, or make them or what is drawn smaller"
            )
        return block

    @property
    def _factor(self) -> int:
        return 1 if self.tokenizer.vision is None else self.tokenizer.vision.spatial_factor


def free_headers(tokenizer: MultimodalTokenizer, prompt: Tensor) -> list[list[int]]:
    """Headers for a model that chooses the size of its pictures: that of the only block in its prompt, else any with two digits per side.

    As in `logits_processor.py` of baaivision/Emu3.5 if no size is given.
    """
    found = _headers(tokenizer, prompt, {})
    if len(found) == 1 or "image" not in tokenizer.layout.modalities:
        return found
    sides = range(10, 100)
    return found + [tokenizer.layout.header("image", (height, width)) for height in sides for width in sides]


def headers_after(
    tokenizer: MultimodalTokenizer, prompt: Tensor, clip: tuple[int, int, int] | None, settings: GenerationDefaults
) -> list[list[int]]:
    """Headers of the blocks that may follow a prompt; `clip` is (time, height, width) in codes, None if the model chooses the size."""
    if clip is None:
        return free_headers(tokenizer, prompt)
    offered = {"image": (clip[1:], {}), "video": (clip, {"frames": settings.frames, "fps": settings.fps})}
    return _headers(tokenizer, prompt, offered)


def _headers(
    tokenizer: MultimodalTokenizer, prompt: Tensor, offered: Mapping[str, tuple[Grid, Mapping[str, Any]]]
) -> list[list[int]]:
    """Headers of the blocks that may occur in a document: those offered, and those already in its prompt.

    Args:
        tokenizer: of the document.
        prompt: (n,) int64 ids.
        offered: (grid, meta) by modality; modalities that the layout does not support are dropped.
    """
    layout = tokenizer.layout
    found = [layout.header(name, *block) for name, block in offered.items() if name in layout.modalities]
    for segment in layout.parse(prompt):
        if isinstance(segment, CodeSegment):
            modality = layout.modality(segment.modality)
            grid = modality.check_codes(segment.codes, len(layout.code_ranges(modality.codebook)))
            found.append(layout.header(segment.modality, grid, segment.meta))
    return found
