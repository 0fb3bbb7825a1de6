"""Samples of streams by the number of their step: windows of a stream, each in a random order of its own.

Window w of a stream is its sources w * size to (w + 1) * size, pass after pass, the parts of each pass in an order that is drawn from the
seed and the number of the pass. Sample n of a run is one of window n div size, the one at place n mod size of a permutation that seed and
number of the window give. So what a step holds is a function of seed and step, on any number of ranks; where a stream stands is four
numbers, the same ones on all ranks, and going on from them reads nothing of what was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emu_tokenizers.pixels.sources import Source
from emu_tokenizers.pixels.streams import PixelStream


class StreamPosition(NamedTuple):
    """Where a window of a stream begins.

    Attributes:
        window: number of the window.
        passes: passes through all parts that are done.
        part: parts of this pass that are done.
        source: sources of this part that are done.
    """

    window: int = 0
    passes: int = 0
    part: int = 0
    source: int = 0


class StreamWindows:
    """The windows of a stream, one at a time in memory.

    Args:
        stream: of sources.
        size: of a window.
        seed: of all orders.

    Attributes:
        position: where the present window begins.
        sources: of the present window, as the stream has them; none before the first one is asked for.
    """

    def __init__(self, stream: PixelStream, size: int, seed: int) -> None:
        self.stream, self.size, self.seed = stream, size, seed
        self.go_to(StreamPosition())

    def go_to(self, position: StreamPosition) -> None:
        """Read from here on."""
        self.position, self.sources = position, list[Source]()
        self._next, self._order = position, np.zeros(0, dtype=np.int64)
        self._reading = self._from(position)

    def sample(self, number: int) -> Source:
        """The source of a sample of the run.

        Raises:
            FileNotFoundError: the stream has no sources.
            ValueError: a part of it cannot be read.
        """
        window, place = divmod(number, self.size)
        if window < self.position.window:  # no later position says what was before
            self.go_to(StreamPosition())
        while not self.sources or self.position.window < window:
            self._read_window()
        return self.sources[int(self._order[place])]

    def _read_window(self) -> None:
        number = self._next.window
        self.position, self.sources = self._next, []
        for after, source in self._reading:
            self.sources.append(source)
            if len(self.sources) == self.size:
                self._next = after._replace(window=number + 1)
                break
        self._order = np.random.default_rng((self.seed, 1, number)).permutation(self.size)

    def _from(self, position: StreamPosition) -> Iterator[tuple[StreamPosition, Source]]:
        """The sources from a position on, without end, each with the position after it."""
        _, passes, part, source = position
        while True:
            order = np.random.default_rng((self.seed, 0, passes)).permutation(len(self.stream.parts))
            none = part == source == 0
            for place in range(part, len(order)):
                for one in self.stream.sources(int(order[place]), source):
                    none, source = False, source + 1
                    yield StreamPosition(0, passes, place, source), one
                source = 0
            if none:
                raise FileNotFoundError(f"there are no pictures or clips in {self._named()}")
            passes, part = passes + 1, 0

    def _named(self) -> str:
        shown = ", ".join(str(part) for part in self.stream.parts[:3])
        return shown + (f" and {len(self.stream.parts) - 3} more" if len(self.stream.parts) > 3 else "")
