"""Tables of documents as tokenized documents; `emu.data.tokenizing.line_source` says what a table holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from emu.data.shards import TokenizedDocument
from emu.data.tokenizing.conversations import check_messages, templated, weighted
from emu.data.tokenizing.line_source import names_of
from emu.data.tokenizing.named_files import file_of, number_of, read_clip, read_picture
from emu.data.tokenizing.picture_sizes import Sizing
from emu.data.tokenizing.pixel_batches import Piece, PixelBatches
from emu.documents import Text, TextSegment, Video
from emu.lines import BadLine, message_of, reason_of, shown
from emu.modalities import MODALITIES, ImageModality, VideoModality
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import PLAIN

Found = TypeVar("Found")
OPTIONS = {
    "text": {"weight"},
    "caption": {"weight"},
    "image": {"weight"},
    "video": {"fps", "start", "frames", "weight"},
    "frames": {"fps", "weight"},
}
"""What an item is told by, and the keys that it may have besides. The first that an item has is its kind."""


@dataclass
class Draft:
    """A document that is read, and whose pixels may still wait to be encoded.

    Attributes:
        turns: (role, pieces) of each message; one turn of no role for a plain document.
        captions: numbers of the pieces that are captions.
    """

    turns: list[tuple[str, list[Piece]]]
    captions: list[int]

    @property
    def pieces(self) -> list[Piece]:
        """All pieces in order."""
        return [piece for _, pieces in self.turns for piece in pieces]


class DocumentReader:
    """Turns tables of documents into tokenized documents: `draft`, then the batches, then `finish`.

    Args:
        tokenizer: of the documents.
        folder: that file names start from.
        sizing: of pictures and frames; by default their own size, rounded to the factor.
        loss_on: the role in conversations whose words are learned, "assistant" or "all".
    """

    def __init__(
        self,
        tokenizer: MultimodalTokenizer,
        folder: Path,
        sizing: Sizing | None = None,
        loss_on: str = "assistant",
    ) -> None:
        self.tokenizer, self.folder, self.loss_on = tokenizer, folder, loss_on
        factor = 1 if tokenizer.vision is None else tokenizer.vision.spatial_factor
        self.sizing = sizing or Sizing(factor, resize=tokenizer.resize, clips=False)

    @property
    def state(self) -> str:
        """What documents depend on beside their record."""
        told = [self.tokenizer.fingerprints, self.tokenizer.layout.name, repr(self.sizing), str(self.folder.resolve())]
        if self.tokenizer.templates != PLAIN:
            told.append(repr(self.tokenizer.templates))
        return json.dumps([*told, self.loss_on])

    def batches(self) -> PixelBatches:
        """Empty batches for the pixels of drafts."""
        vision = self.tokenizer.vision
        return PixelBatches(vision, vision.device, vision.dtype) if vision is not None else PixelBatches(_NoEncoder())

    def read(self, table: Mapping[str, Any]) -> TokenizedDocument:
        """The document of one table; errors as in `draft` and `finish`."""
        draft, batches = self.draft(table), self.batches()
        for piece in draft.pieces:
            if piece.pixels is not None:
                batches.add(piece)
        batches.flush()
        return self.finish(draft)

    def draft(self, table: Mapping[str, Any]) -> Draft:
        """Read what a table says and the files that it names.

        Raises:
            BadLine: what is wrong with it.
        """
        if set(table) == {"messages"}:
            return Draft([(role, self._pieces(content)) for role, content in check_messages(table["messages"])], [])
        if set(table) != {"items"} or not isinstance(table["items"], list) or not table["items"]:
            raise BadLine(
                "no items",
                f'expected {{"items": [...]}} with one item or more, or {{"messages": [...]}}; got {shown(table)}',
            )
        items = table["items"]
        captions = [i for i, item in enumerate(items) if isinstance(item, dict) and "caption" in item]
        if len(captions) > 1:
            raise BadLine("wrong value", f"{len(captions)} captions; a document has at most one")
        return Draft([("", self._pieces(items))], captions)

    def finish(self, draft: Draft) -> TokenizedDocument:
        """The document of a draft whose pixels are encoded.

        Raises:
            BadLine: pixels could not be encoded, or nothing of the document would be learned.
        """
        turns = [(role, [piece.finished() for piece in pieces]) for role, pieces in draft.turns]
        if turns[0][0]:
            if self.tokenizer.templates.answer != PLAIN.answer:
                document, roles = templated(turns, self.tokenizer, self.loss_on), tuple[str, ...]()
            else:
                spoken = [(role, weighted(segment, role, self.loss_on)) for role, said in turns for segment in said]
                document = self.tokenizer.layout.build([segment for _, segment in spoken])
                roles = tuple(role for role, _ in spoken)
            _check_weights(document.weights, "")
            return TokenizedDocument(document, roles=roles)
        segments = turns[0][1]
        document = self.tokenizer.layout.build(segments)
        _check_weights(document.weights, "")
        if not draft.captions or len(segments) == 1:
            return TokenizedDocument(document)
        span = document.spans[draft.captions[0]]
        rest = torch.cat([document.weights[: span.start], document.weights[span.start + span.length :]])
        _check_weights(rest, "without its caption ")
        return TokenizedDocument(document, caption=(span.start, span.length))

    def values(self, items: Sequence[Any]) -> list[Any]:
        """What the items of a document are: texts, and pictures and clips at their size; errors as in `draft`."""
        return [self._contained(number, item, self._value_of) for number, item in enumerate(items, start=1)]

    def _value_of(self, item: Any) -> Any:
        item = {"text": item} if isinstance(item, str) else item
        return self._value(kind_of(item, self.tokenizer.layout.modalities), item)

    def _pieces(self, items: Sequence[Any]) -> list[Piece]:
        """The items, text tokenized and pictures read; of the first bad one, a `BadLine` that names it and its file."""
        found: list[Piece] = []
        for number, item in enumerate(items, start=1):
            found.append(self._contained(number, item, self._piece))
            found[-1].where = _where(number, item, "")
        return found

    def _contained(self, number: int, item: Any, read: Callable[[Any], Found]) -> Found:
        try:
            return read(item)
        except Exception as error:
            # Of any kind: files of strangers are read here, and the message has to name them.
            raise BadLine(reason_of(error), f"{_where(number, item, str(error))}: {message_of(error)}") from error

    def _piece(self, item: Any) -> Piece:
        if isinstance(item, str):
            item = {"text": item}
        kind = kind_of(item, self.tokenizer.layout.modalities)
        weight = number_of(item, "weight")
        value = self._value(kind, item)
        accepting = (one for one in self.tokenizer.layout.modalities.values() if one.accepts(value))
        modality = next(accepting, None)
        if type(modality) is ImageModality or type(modality) is VideoModality:
            clip = isinstance(value, Video)
            meta = {"frames": len(value), "fps": value.fps} if clip else {}
            pixels = value.frames if clip else np.asarray(value)
            return Piece("", None, pixels, modality.name, meta, 1.0 if weight is None else weight)
        (segment,) = self.tokenizer.segments([value])
        if isinstance(segment, TextSegment) and not len(segment.ids):
            raise BadLine("wrong value", f"{kind} {shown(item[kind])} has no tokens")
        return Piece("", segment if weight is None else replace(segment, weight=weight))

    def _value(self, kind: str, item: Mapping[str, Any]) -> Any:
        if kind in ("text", "caption"):
            if not isinstance(item[kind], str) or not item[kind]:
                raise BadLine("wrong value", f"{kind} is {shown(item[kind])}; expected text that is not empty")
            return Text(item[kind])
        if kind in ("video", "frames"):
            return self.sizing.clip(read_clip(item, self.folder, self.sizing.fixed))
        if kind != "image":
            return MODALITIES.find(kind).from_json(item[kind], self.folder)
        source = item["image"]
        image: Image.Image = read_picture(source if isinstance(source, bytes) else file_of(source, self.folder, kind))
        return self.sizing.picture(image)


class _NoEncoder:
    """Stands where a tokenizer has no vision, of which no piece has pixels."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        raise ValueError("the tokenizer has no vision tokenizer; name one that has")


def _where(number: int, item: Any, told: str) -> str:
    """How messages call an item: by its number and those of its names that they do not tell already."""
    names = [name for name in names_of(item) if name not in told]
    return f"item {number}" + (f" ({', '.join(map(shown, names[:3]))})" if names else "")


def kind_of(item: Any, modalities: Mapping[str, Any] | None = None) -> str:
    """What an item is.

    Args:
        item: of a line.
        modalities: those that it may be of, by name, besides the kinds of `OPTIONS`.

    Raises:
        BadLine: it is nothing that a document holds, or has a key of another kind.
    """
    known = {**OPTIONS, **{name: {"weight"} for name in modalities or {} if name not in OPTIONS}}
    kinds = [kind for kind in known if isinstance(item, dict) and kind in item]
    if not kinds:
        raise BadLine("wrong item", f"an item is a text or an object with one of {list(known)}, got {shown(item)}")
    unknown = sorted(set(item) - {kinds[0]} - known[kinds[0]])
    if unknown:
        listed = ", ".join([kinds[0], *sorted(known[kinds[0]])])
        raise BadLine(
            "unknown key", f"unknown key {shown(unknown[0])} of an item with {kinds[0]!r}; known are {listed}"
        )
    return kinds[0]


def _check_weights(weights: torch.Tensor, state: str) -> None:
    if not (weights > 0).any():
        raise BadLine(
            "no weight", f"the document {state}has the weight 0 everywhere, so nothing would be learned from it"
        )
