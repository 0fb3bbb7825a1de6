"""A sample of the texts of a source, of bounded size and the same whatever the order in which records come."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from typing import Any


class TextSample:
    """Keeps the texts whose keys have the smallest digests, as many as fit: each text has the same chance.

    Args:
        max_bytes: of all texts that are kept, in UTF-8.
        seed: another one keeps others.
    """

    def __init__(self, max_bytes: int, seed: int = 0) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; expected 1 or more")
        self.max_bytes, self.seed = max_bytes, seed
        self.num_seen = 0
        self._kept: list[tuple[int, str]] = []  # a heap, the largest digest first
        self._size = 0
        self._limit = 1 << 64

    def add(self, key: str, text: str) -> None:
        """Offer a text; its key is the name of its record."""
        self.num_seen += 1
        told = f"{self.seed} {key}".encode("utf-8", "backslashreplace")
        number = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big")
        if number >= self._limit:
            return
        heapq.heappush(self._kept, (-number, text))
        self._size += _size(text)
        while self._size > self.max_bytes and len(self._kept) > 1:
            # What is larger than a text that did not fit is left out too, so that the sample does not depend on the order.
            largest, left_out = heapq.heappop(self._kept)
            self._limit = -largest
            self._size -= _size(left_out)

    def texts(self) -> list[str]:
        """The texts that were kept, in the order of their digests."""
        return [text for _, text in sorted(self._kept, key=lambda kept: (-kept[0], kept[1]))]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def texts_of(table: Mapping[str, Any]) -> Iterator[str]:
    """The texts and captions of a document or conversation, in order; what is not of that form is passed over."""
    if isinstance(table.get("messages"), list):
        for message in table["messages"]:
            content = message.get("content") if isinstance(message, Mapping) else None
            yield from texts_of({"items": content if isinstance(content, list) else [content]})
        return
    for item in table["items"] if isinstance(table.get("items"), list) else ():
        for text in [item.get("text"), item.get("caption")] if isinstance(item, Mapping) else [item]:
            if isinstance(text, str) and text:
                yield text
