"""Tables of things by name that users add to: quantizers, modalities, layouts, families, suites, commands.

    quantizers = Registry("quantizer", {"vq": VectorQuantizer})
    quantizers.register("mine", MyQuantizer)

An installed package adds to them from a module that it names under the entry point group `emu.extensions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Objects by name, in the order in which they were registered.

    Args:
        kind: what the objects are, in the singular, for messages.
        entries: what the library brings along.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T] = dict(entries or {})

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {list(self._entries)})"

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def find(self, name: str) -> T:
        """The object of this name.

        Raises:
            ValueError: there is none; the message names those that there are.
        """
        if name not in self._entries:
            raise ValueError(
                f"{self.kind} {name!r} is not registered; expected one of {sorted(self._entries)}, or import the module that registers it"
            )
        return self._entries[name]

    def register(self, name: str, value: T) -> T:
        """Make an object known by a name; the same object may come again.

        Raises:
            TypeError: the name is not text.
            ValueError: the name is empty, or taken by another object.
        """
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind}'s name is {name!r}; expected text")
        if not name:
            raise ValueError(f"a {self.kind}'s name is empty; choose one")
        if self._entries.get(name, value) is not value:
            raise ValueError(
                f"{self.kind} {name!r} is registered already ({self._entries[name]!r}); choose another name"
            )
        self._entries[name] = value
        return value

    def unregister(self, name: str) -> T:
        """Take an object out again, and return it; raises as `find` does."""
        value = self.find(name)
        del self._entries[name]
        return value
