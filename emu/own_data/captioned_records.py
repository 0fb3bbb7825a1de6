"""Records of a source that hold one picture or clip and its caption: which of them can be used, and what is said of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from emu.data.tokenizing import Record, RecordSource
from emu.lines import BadLine, message_of, reason_of
from emu.stopping import say

T = TypeVar("T")

NAMED = 100
"""Records that are named for each reason."""
SHOWN = 10
"""Those of them that are printed."""
OTHERS = {
    "picture": "clips are for emu fit --config own-videos",
    "clip": "pictures are for emu fit --config own-images",
}
"""What a document may hold instead, and which job takes it."""


def with_caption(items: Sequence[Any], keys: Sequence[str], kind: str) -> tuple[Mapping[str, Any], str]:
    """The one item of a document that has one of these keys, and the caption beside it.

    Args:
        items: of the document.
        keys: that pictures or clips have.
        kind: "picture" or "clip", for the message.

    Raises:
        BadLine: the document holds something else.
    """
    media = [item for item in items if isinstance(item, Mapping) and any(key in item for key in keys)]
    texts = [item if isinstance(item, str) else item.get("caption", item.get("text")) for item in items]
    texts = [text for text in texts if isinstance(text, str) and text.strip()]
    if len(media) != 1 or len(texts) != 1 or len(items) != 2:
        told = f"a document of {len(media)} {kind}s and {len(texts)} texts; expected one {kind} and its caption"
        if any(isinstance(item, Mapping) and not {*keys, "caption", "text"} & set(item) for item in items):
            told += f" ({OTHERS[kind]})"
        raise BadLine(f"not a captioned {kind}", told)
    return media[0], " ".join(texts[0].split())


@dataclass
class LeftOut:
    """What was left out of a source, and why.

    Attributes:
        bad: how many records, by reason.
        named: the first of each reason, each with its place and what is wrong with it.
        duplicates: how many records others repeat.
    """

    bad: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    duplicates: int = 0

    def good(self, source: RecordSource, read: Callable[[Record], T]) -> Iterator[T]:
        """What `read` makes of each record; those that it raises for are counted."""
        for record in source.records():
            try:
                found = read(record)
            except Exception as error:  # files of strangers break decoders in ways that nobody can list
                reason = reason_of(error)
                self.bad[reason] += 1
                if self.bad[reason] <= NAMED:
                    self.named.setdefault(reason, []).append(f"{record.place}: {message_of(error)}")
                continue
            yield found

    @property
    def counts(self) -> dict[str, int]:
        """How many, by reason."""
        return {**self.bad, **({"duplicate": self.duplicates} if self.duplicates else {})}

    def check_enough(self, number: int, source: str, kind: str) -> None:
        """Raise ValueError where fewer than two different records are left."""
        if number < 2:
            named = [line for lines in self.named.values() for line in lines]
            told = f"; the first that is bad: {named[0]}" if named else ""
            raise ValueError(f"{source} has {number} different captioned {kind}s; expected 2 or more{told}")

    def say(self, kind: str, train: int, held_out: int, file: Path) -> None:
        """Say in a line how the rest was divided, and name what was left out; `file` names more of it."""
        told = ", ".join(f"{count} {reason}" for reason, count in self.counts.items()) or "none"
        say(f"{train} {kind}s to train on, {held_out} held out; left out: {told}")
        for line in [line for lines in self.named.values() for line in lines][:SHOWN]:
            say(f"left out: {line}")
        if sum(self.bad.values()) > SHOWN:
            say(f"left out: ... and {sum(self.bad.values()) - SHOWN} more, see {file}")
