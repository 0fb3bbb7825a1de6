"""What a model was trained for: its tasks, and the sizes, lengths and rates of what it saw. Saved in `emu.json`, checked by every job.

A task is named by the kinds of content it reads and writes, in their order of first appearance:

    text_to_image  image_to_text  image_to_image  text_to_video  video_to_text  image_to_video  image_and_text_to_image  ...

What nothing stands before is `unconditional_image`, `unconditional_video`, ..., and for text `text_continuation`. Whoever writes a clip
continues one too: `video_continuation` stands beside each task that writes one. Filling in hidden cells of a picture or a clip, whatever
stands before it, is `image_infill` or `video_infill`. A kind is "text" or the name of a registered modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

TEXT, CLIP = "text", "video"
SHOWN = 6
"""So many of the trained sizes, lengths or rates stand in a message."""


def task_name(given: Iterable[str], written: str) -> str:
    """The task of writing one kind of content after others: (["image", "text"], "image") -> "image_and_text_to_image".

    Args:
        given: kinds of what stands before, in order; kinds that come again are named once.
        written: kind of what is generated. Text after text goes on with it, so that (["image", "text"], "text") is "image_to_text".
    """
    runs = _runs(given)
    if written == TEXT and runs[-1:] == [TEXT]:
        runs.pop()
        if not runs:
            return "text_continuation"
    if not runs:
        return "text_continuation" if written == TEXT else f"unconditional_{written}"
    return f"{'_and_'.join(dict.fromkeys(runs))}_to_{written}"


def infill_task(written: str) -> str:
    """The task of filling in hidden cells of a block of this kind, e.g. "image_infill"."""
    return f"{written}_infill"


def tasks_of(kinds: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a training document teaches.

    Args:
        kinds: of its segments in order, e.g. ["text", "image"]; neighbouring texts count as one.

    Returns:
        One task for each kind after the first, in order: a document that begins with a picture or a caption shows how it is read, not how
        it is made. A document of one segment alone teaches to write it. With a clip comes "video_continuation".
    """
    runs = _runs(kinds)
    places = range(1, len(runs)) if len(runs) > 1 else range(len(runs))
    found = [task_name(runs[:place], runs[place]) for place in places]
    if any(runs[place] == CLIP for place in places):
        found.append(f"{CLIP}_continuation")
    return tuple(dict.fromkeys(found))


def _runs(kinds: Iterable[str]) -> list[str]:
    """Kinds with neighbouring text joined: it becomes one text, while two pictures stay two."""
    found: list[str] = []
    for kind in kinds:
        if kind != TEXT or found[-1:] != [TEXT]:
            found.append(kind)
    return found


@dataclass(frozen=True)
class Trained:
    """What a model was trained for. What is empty or None is not known, and nothing is said about it.

    Attributes:
        tasks: names of its tasks, see `tasks_of`.
        sizes: (height, width) in pixels of the pictures and frames that it saw.
        frames: lengths of the clips that it saw, in frames.
        rates: frames a second of those clips.
        context: tokens of the longest document that it saw, controls included.

    Raises:
        TypeError: a value of another kind.
        ValueError: a size, length, rate or context that is not positive.
    """

    tasks: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    frames: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    context: int | None = None

    def __post_init__(self) -> None:
        for task in self.tasks:
            if not isinstance(task, str):
                raise TypeError(f"trained tasks hold {task!r}; expected names like 'text_to_image'")
        for size in self.sizes:
            if not isinstance(size, tuple) or len(size) != 2:
                raise TypeError(f"trained sizes hold {size!r}; expected pairs (height, width) in pixels")
        whole = [side for size in self.sizes for side in size] + [*self.frames]
        whole += [] if self.context is None else [self.context]
        for number in whole:
            _check_positive(number, Integral, "sizes, frames or context")
        for rate in self.rates:
            _check_positive(rate, Real, "rates")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "tasks": list(self.tasks),
            "sizes": [list(size) for size in self.sizes],
            "frames": list(self.frames),
            "rates": list(self.rates),
            "context": self.context,
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Trained:
        """The inverse of `to_dict`.

        Raises:
            TypeError: a value of another kind.
            ValueError: keys are missing or unknown, or a value is outside its range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(table, Mapping) or set(table) != set(known):
            given = sorted(table) if isinstance(table, Mapping) else type(table).__name__
            raise ValueError(f"what a model was trained for holds {known}, got {given}")
        for name in known[:-1]:
            if not isinstance(table[name], list):
                raise TypeError(f"trained {name} are {table[name]!r}; expected a list")
        return cls(
            tasks=tuple(table["tasks"]),
            sizes=tuple(tuple(size) if isinstance(size, list) else size for size in table["sizes"]),
            frames=tuple(table["frames"]),
            rates=tuple(table["rates"]),
            context=table["context"],
        )

    def check_task(self, *names: str) -> None:
        """Raise ValueError where the model knows its tasks and was trained for none of these; the message names the first."""
        if self.tasks and not set(names) & set(self.tasks):
            raise ValueError(
                f"the model was not trained for {names[0]}; it was trained for {', '.join(self.tasks)}: ask for one of those, or train it "
                "on documents of this form too"
            )

    def problems(
        self,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        rate: float | None = None,
        tokens: int | None = None,
    ) -> list[str]:
        """What of a request lies outside of what the model saw, in words; None is not asked for.

        Args:
            size: (height, width) in pixels.
            frames: length of a clip.
            rate: its frames a second.
            tokens: of the longest sequence, what is generated included.
        """
        found = []
        if size is not None and self.sizes and tuple(size) not in self.sizes:
            sizes = _listed(f"{height}x{width}" for height, width in self.sizes)
            found.append(f"size {size[0]}x{size[1]} (trained on {sizes})")
        if frames is not None and self.frames and frames not in self.frames:
            found.append(f"{frames} frames (trained on {_listed(map(str, self.frames))})")
        if rate is not None and self.rates and rate not in self.rates:
            found.append(f"{rate:g} frames a second (trained on {_listed(f'{known:g}' for known in self.rates)})")
        if tokens is not None and self.context is not None and tokens > self.context:
            found.append(f"{tokens} tokens (trained on up to {self.context})")
        return found


UNKNOWN = Trained()
"""Of a model of which nobody knows what it was trained for."""


def _check_positive(number: Any, kind: type[Integral] | type[Real], name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, kind):
        raise TypeError(f"trained {name} hold {number!r}; expected {'whole ' if kind is Integral else ''}numbers")
    if not 0 < float(number) < float("inf"):
        raise ValueError(f"trained {name} hold {number!r}; expected positive numbers")


def _listed(words: Iterable[str]) -> str:
    """The first of them, and how many there are where some are left out."""
    every = list(words)
    return ", ".join(every[:SHOWN]) + (f", ... ({len(every)} in all)" if len(every) > SHOWN else "")
