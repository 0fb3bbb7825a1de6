"""Where training documents come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from emu.documents import TokenDocument


@runtime_checkable
class DocumentSource(Protocol):
    """Documents by number.

    A source may also have `max_length: int`, an upper bound on the tokens of any of its documents, and `length(index, key) -> int`. With
    the first, rows that are too short are refused before training starts; with the second, a rank builds only the documents of its rows.
    With `identity: str`, a digest of its content, a run is not resumed on other documents.
    `too_long(row_length) -> str` says how many are too long and what to do, for the message.
    """

    def __len__(self) -> int:
        """Number of documents of an epoch."""
        ...

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index`; whatever is random in it (augmentation, a dropped caption) is drawn from `key` alone."""
        ...


class MeasuredSource(DocumentSource, Protocol):
    """Documents whose lengths are known without building them, as steps of a constant number of rows need it.

    Attributes:
        mean_length: expected tokens of a document over all keys.
    """

    mean_length: float

    def lengths(self) -> np.ndarray:
        """Most tokens that each document can have, (len(self),) int64."""
        ...

    def token_lengths(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Tokens of `document(number, key)` for numbers and keys (n,) int64; (n,) int64."""
        ...


class ListSource:
    """Documents held in memory; `key` changes nothing.

    Raises:
        ValueError: there are no documents.
    """

    def __init__(self, documents: Sequence[TokenDocument]) -> None:
        if not documents:
            raise ValueError("a source of zero documents; it needs at least one")
        self._documents = list(documents)
        self.max_length = max(len(document) for document in self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index`."""
        return self._documents[index]

    def length(self, index: int, key: int) -> int:
        """Number of tokens of document `index`."""
        return len(self._documents[index])


class FunctionSource:
    """Documents made on demand by a pure function of (index, key), e.g. one that tokenises, augments or drops a caption.

    Args:
        function: (index, key) -> document.
        size: number of documents of an epoch.
        max_length: upper bound on their tokens where it is known.

    Raises:
        ValueError: the size is below 1.
    """

    def __init__(self, function: Callable[[int, int], TokenDocument], size: int, max_length: int | None = None) -> None:
        if size < 1:
            raise ValueError(f"a source of {size} documents; it needs at least one")
        self._function = function
        self._size = size
        self.max_length = max_length

    def __len__(self) -> int:
        return self._size

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index` with the randomness of `key`."""
        return self._function(index, key)


def source_identities(sources: Mapping[str, DocumentSource]) -> dict[str, Any]:
    """What decides on the documents of sources, as plain settings by name: each one's number of documents, `identity` and settings."""
    found: dict[str, Any] = {}
    for name, source in sources.items():
        found[f"sources.{name}"] = [len(source), getattr(source, "identity", None)]
        if hasattr(source, "caption_dropout"):
            found[f"sources.{name}.caption_dropout"] = source.caption_dropout
    return found
