"""Lines of a document file as tokenized documents.

A line is a document, {"items": [...]}, whose items are, in order:

    "text", or {"text": "Describe it.", "weight": 0}     weight of its loss; 0 for prompts
    {"caption": "a red circle", "weight": 0.1}           text that training may leave out, for guidance; one a document
    {"image": "cat.png"}                                 a picture file, named from where the document file lies
    {"video": "clip.mp4", "fps": 8, "start": 0, "frames": 16}    a clip, or a part of it, at a rate
    {"frames": ["0.png", "1.png"], "fps": 8}             a clip of pictures; one name is an animation or a folder of frames

Pictures and clips may have a weight too. Or it is a conversation, {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
"content": ...}]}, whose contents are a text or a list of items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emu.data.shards import TokenizedDocument
from emu.data.tokenizing.named_files import Size, file_of, names_of, number_of, read_clip, read_picture, state_of
from emu.documents import CodeSegment, Segment, Text, TextSegment, TokenDocument
from emu.lines import BadLine, Line, Place, message_of, reason_of, shown
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import PLAIN

OPTIONS = {
    "text": {"weight"},
    "caption": {"weight"},
    "image": {"weight"},
    "video": {"fps", "start", "frames", "weight"},
    "frames": {"fps", "weight"},
}
"""What an item is told by, and the keys that it may have besides. The first that an item has is its kind."""


@dataclass(frozen=True)
class DocumentEntry:
    """One document to be: a line of a file or a row of a table.

    Attributes:
        place: where it stands.
        state: bytes that change whenever what it says, or a file that it names, does.
        table: reads what it says.
    """

    place: Place
    state: bytes
    table: Callable[[], Mapping[str, Any]]


def line_entry(line: Line, folder: Path) -> DocumentEntry:
    """A line as an entry; files in it are named from `folder`."""
    try:
        names = dict.fromkeys(name for item in _items(line.table()) for name in names_of(item))
        states = [state_of(folder / name) for name in names]
    except (BadLine, RecursionError):  # the line tells what is wrong with it when it is read as a document
        states = []
    told = json.dumps(states).encode()
    return DocumentEntry(Place(line.file, line.number), b"%d %s %s" % (line.number, line.content, told), line.table)


def _items(table: Mapping[str, Any]) -> list[Any]:
    found = table.get("items")
    items = list(found) if isinstance(found, list) else []
    messages = table.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        items += content if isinstance(content, list) else []
    return items


class DocumentReader:
    """Turns entries into tokenized documents.

    Args:
        tokenizer: of the documents.
        folder: that file names start from.
        size: (height, width) that pictures and frames are cropped and resized to; None takes them as they are.
        loss_on: the role in conversations whose words are learned, "assistant" or "all".
    """

    def __init__(
        self,
        tokenizer: MultimodalTokenizer,
        folder: Path,
        size: Size | None = None,
        loss_on: str = "assistant",
    ) -> None:
        self.tokenizer, self.folder, self.size, self.loss_on = tokenizer, folder, size, loss_on

    @property
    def state(self) -> str:
        """What documents depend on beside their entry."""
        told = [self.tokenizer.fingerprints, self.tokenizer.layout.name, self.size, str(self.folder.resolve())]
        if (self.tokenizer.templates, self.tokenizer.resize) != (PLAIN, None):
            told.append(repr(self.tokenizer.templates))
        return json.dumps([*told, self.loss_on])

    @torch.no_grad()
    def read(self, entry: DocumentEntry) -> TokenizedDocument:
        """The document of an entry.

        Raises:
            BadLine: what is wrong with it.
        """
        table = entry.table()
        if set(table) == {"messages"}:
            return self._conversation(table["messages"])
        if set(table) != {"items"} or not isinstance(table["items"], list) or not table["items"]:
            raise BadLine(
                "no items",
                f'expected {{"items": [...]}} with one item or more, or {{"messages": [...]}}; got {shown(table)}',
            )
        items = table["items"]
        segments = self.segments(items)
        document = self.tokenizer.layout.build(segments)
        captions = [i for i, item in enumerate(items) if isinstance(item, dict) and kind_of(item) == "caption"]
        if len(captions) > 1:
            raise BadLine("wrong value", f"{len(captions)} captions; a document has at most one")
        _check_weights(document.weights, "")
        if not captions or len(segments) == 1:
            return TokenizedDocument(document)
        span = document.spans[captions[0]]
        rest = torch.cat([document.weights[: span.start], document.weights[span.start + span.length :]])
        _check_weights(rest, "without its caption ")
        return TokenizedDocument(document, caption=(span.start, span.length))

    def segments(self, items: Sequence[Any]) -> list[Segment]:
        """The items, tokenized.

        Raises:
            BadLine: what is wrong with one of them; the message says with which, and names its file.
        """
        found: list[Segment] = []
        for number, item in enumerate(items, start=1):
            try:
                found.append(self._segment(item))
            except Exception as error:
                # Of any kind: files of strangers are read here, and the message has to name them.
                names = [name for name in names_of(item) if name not in str(error)]
                named = f" ({', '.join(map(shown, names[:3]))})" if names else ""
                raise BadLine(reason_of(error), f"item {number}{named}: {message_of(error)}") from error
        return found

    def _segment(self, item: Any) -> Segment:
        if isinstance(item, str):
            item = {"text": item}
        kind = kind_of(item)
        if kind in ("text", "caption") and (not isinstance(item[kind], str) or not item[kind]):
            raise BadLine("wrong value", f"{kind} is {shown(item[kind])}; expected text that is not empty")
        weight = number_of(item, "weight")
        (segment,) = self.tokenizer.segments([self._value(kind, item)])
        if isinstance(segment, TextSegment) and not len(segment.ids):
            raise BadLine("wrong value", f"{kind} {shown(item[kind])} has no tokens")
        return segment if weight is None else replace(segment, weight=weight)

    def _value(self, kind: str, item: Mapping[str, Any]) -> Any:
        if kind in ("text", "caption"):
            return Text(item[kind])
        if kind != "image":
            return read_clip(item, self.folder, self.size)
        source = item["image"]
        image = read_picture(source if isinstance(source, bytes) else file_of(source, self.folder, "image"), self.size)
        resize = self.tokenizer.resize
        return image if self.size is not None or resize is None else resize(image)

    def _conversation(self, messages: Any) -> TokenizedDocument:
        """A conversation as a document: what the asked-for role says has weight 1, the rest 0."""
        turns = [(role, self.segments(content)) for role, content in check_messages(messages)]
        if self.tokenizer.templates.answer != PLAIN.answer:
            document, roles = self._templated(turns), tuple[str, ...]()
        else:
            spoken = [(role, segment) for role, segments in turns for segment in segments]
            document = self.tokenizer.layout.build([self._weighted(role, segment) for role, segment in spoken])
            roles = tuple(role for role, _ in spoken)
        _check_weights(document.weights, "")
        return TokenizedDocument(document, roles=roles)

    def _weighted(self, role: str, segment: Segment) -> Segment:
        return segment if self.loss_on in (role, "all") else replace(segment, weight=0.0)

    def _templated(self, turns: Sequence[tuple[str, list[Segment]]]) -> TokenDocument:
        """One question in the model's template, as generation asks it, and its answer."""
        if [role for role, _ in turns if role != "system"] != ["user", "assistant"]:
            raise BadLine(
                "wrong value",
                "the template of this tokenizer holds one question and one answer; split the conversation",
            )
        layout, controls = self.tokenizer.layout, self.tokenizer.vocabulary.controls
        question = self.tokenizer.question([self._plain(one) for _, segments in turns[:-1] for one in segments])
        answer = layout.build(turns[-1][1], add_special=False)
        begun = layout.begin_answer is not None and int(question[-1]) == layout.begin_answer
        end = [layout.end_answer] if begun and layout.end_answer is not None else []
        ids = torch.cat([question, answer.ids, torch.tensor([*end, controls["eos"]])])
        asked = torch.full((len(question),), 1.0 if self.loss_on == "all" else 0.0)
        asked[0] = 0.0  # nothing predicts BOS
        weights = torch.cat([asked, answer.weights, torch.ones(len(end) + 1)])
        return TokenDocument(ids, weights, layout.spans(ids))

    def _plain(self, segment: Segment) -> Any:
        """A segment as templates take it: text as words, which are tokenized together with the words around them."""
        if isinstance(segment, CodeSegment):
            return segment
        return self.tokenizer.layout.decode_text(segment.ids.tolist())


def kind_of(item: Any) -> str:
    """What an item is.

    Raises:
        BadLine: it is nothing that a document holds, or has a key of another kind.
    """
    kinds = [kind for kind in OPTIONS if isinstance(item, dict) and kind in item]
    if not kinds:
        raise BadLine("wrong item", f"an item is a text or an object with one of {list(OPTIONS)}, got {shown(item)}")
    unknown = sorted(set(item) - {kinds[0]} - OPTIONS[kinds[0]])
    if unknown:
        known = ", ".join([kinds[0], *sorted(OPTIONS[kinds[0]])])
        raise BadLine("unknown key", f"unknown key {shown(unknown[0])} of an item with {kinds[0]!r}; known are {known}")
    return kinds[0]


def check_messages(messages: Any) -> list[tuple[str, list[Any]]]:
    """(role, items) of each message.

    Raises:
        BadLine: a message is of another form, or the last one is not the assistant's.
    """
    if not isinstance(messages, list) or not messages:
        raise BadLine("wrong value", f"messages is {shown(messages)}; expected a list with one message or more")
    turns: list[tuple[str, list[Any]]] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadLine(
                "wrong value", f'message {number} is {shown(message)}; expected {{"role": ..., "content": ...}}'
            )
        role, content = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            raise BadLine("wrong value", f"message {number} has role {shown(role)}; expected system, user or assistant")
        if not isinstance(content, str | list) or not content:
            raise BadLine(
                "wrong value", f"message {number} has content {shown(content)}; expected text or a list of items"
            )
        turns.append((role, [content] if isinstance(content, str) else content))
    if turns[-1][0] != "assistant":
        raise BadLine(
            "wrong value", f"the last message is the {turns[-1][0]}'s; expected the assistant's, which is learned"
        )
    return turns


def _check_weights(weights: torch.Tensor, state: str) -> None:
    if not (weights > 0).any():
        raise BadLine(
            "no weight", f"the document {state}has the weight 0 everywhere, so nothing would be learned from it"
        )


def digest(entries: Sequence[DocumentEntry], reader: DocumentReader) -> str:
    """What a shard is made from: its lines, the files that they name, the tokenizers, the size of pictures."""
    found = hashlib.sha256(reader.state.encode())
    for entry in entries:
        found.update(b"%d:" % len(entry.state))
        found.update(entry.state)
    return found.hexdigest()
