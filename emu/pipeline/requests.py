"""Requests, checked before work starts and split into batches of equal shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch

from emu.generation import Sampling
from emu.generation.limits import check_number, check_whole
from emu.trained import UNKNOWN, Trained
from emu_tokenizers.pixels.resize import size_of_ratio

Item = TypeVar("Item")
Size = tuple[int, int]
SizeLike = Size | str | tuple[str, int]
"""(height, width) in pixels, a ratio "width:height", or a ratio and an area in pixels, ("4:3", 262144)."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Settings for calls that do not give them; saved with the model.

    Attributes:
        size: (height, width) in pixels; None if every call has to give it.
        frames: length of a clip.
        fps: its frames per second.
        guidance_scale: how far to move from the negative prompt towards the prompt; 1 turns guidance off.
        negative_prompt: what guidance moves away from.
        temperature: 0 is greedy.
        top_k: sample from the N most likely codes; 0 means all.
        top_p: sample from the most likely codes with this total probability.
        question: what `emu describe` and the page of `emu serve` ask about a picture; empty if the model was trained to describe
            pictures without being asked.
    """

    size: Size | None = None
    frames: int = 16
    fps: float = 8
    guidance_scale: float = 3.0
    negative_prompt: str = ""
    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 1.0
    question: str = "Describe it."

    def updated(self, **given: Any) -> GenerationDefaults:
        """Return these settings with the given ones that are not None replaced.

        Raises:
            TypeError, ValueError: a setting has the wrong type or is out of range.
        """
        changed = replace(self, **{name: value for name, value in given.items() if value is not None})
        changed.check()
        return changed

    def check(self) -> None:
        """Raise TypeError or ValueError if a setting is invalid."""
        if self.size is not None:
            check_size(self.size)
        check_whole("frames", self.frames, least=1)
        check_number("fps", self.fps, positive=True)
        for name, words in (("negative_prompt", self.negative_prompt), ("question", self.question)):
            if not isinstance(words, str):
                raise TypeError(f"{name} is {type(words).__name__}; expected str")
        check_whole(
            "top_k", self.top_k, least=0
        )  # None, which `Sampling` takes, would be read back from a file as the default
        self.sampling()

    def sampling(self) -> Sampling:
        """Return the sampling settings of codes; raises TypeError or ValueError if a number is invalid."""
        return Sampling(
            guidance_scale=self.guidance_scale, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], trained: Trained = UNKNOWN) -> GenerationDefaults:
        """Read settings written by `to_dict`.

        Args:
            table: settings by name; missing ones get the library's defaults.
            trained: what the model was trained for. A size, length or rate missing from the table is the trained one if there is only one.

        Raises:
            ValueError: a setting is unknown or out of range.
        """
        unknown = set(table) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"unknown generation settings {sorted(unknown)}; known are {[f.name for f in fields(cls)]}"
            )
        size = table.get("size")
        given = {**table, "size": None if size is None else tuple(size)}
        for name, seen in (("size", trained.sizes), ("frames", trained.frames), ("fps", trained.rates)):
            if given.get(name) is None and len(seen) == 1:
                given[name] = seen[0]
        return cls().updated(**given)


def check_device(device: str | torch.device | None) -> torch.device:
    """Return the device to generate on: the one given, else a GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"no device {device!r}; expected cpu, cuda, cuda:1, ...") from error
    if found.type == "cuda" and not (torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device is {device!r}, and this machine has {torch.cuda.device_count()} usable GPUs")
    return found


def check_size(size: Any, factor: int = 1) -> Size:
    """(height, width) of `size`.

    Raises:
        TypeError: it is not a pair of whole numbers.
        ValueError: a side is not a positive multiple of `factor`.
    """
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise TypeError(
            f'size is {size!r}; expected (height, width) in pixels, "width:height" or ("width:height", area)'
        )
    for name, side in zip(("height", "width"), size, strict=True):
        side = check_whole(name, side, least=1)
        if side % factor:
            below, above = side // factor * factor, -(-side // factor) * factor
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"size is {tuple(size)}; the {name} must be a multiple of the tokenizer's factor {factor}, e.g. {near}"
            )
    return int(size[0]), int(size[1])


def sizes_of(size: Any, count: int, usual: Size | None, factor: int, trained: Trained) -> list[Size]:
    """Return (height, width) of each of N results.

    Args:
        size: one for all, or a list of one each; None is the default.
        count: N.
        usual: the model's default; its area is used for ratios without one.
        factor: pixels per code along each side.
        trained: has the sizes that error messages name.

    Raises:
        TypeError: another form.
        ValueError: the number of sizes is wrong, there is none and the model has no default, or a side is not a multiple of the factor.
    """
    if not isinstance(size, list | tuple) or _is_one(size):
        return [_size_of(size, usual, factor, trained)] * count
    if len(size) != count:
        raise ValueError(f"{len(size)} sizes for {count} prompts; give one size, or one per prompt")
    return [_size_of(one, usual, factor, trained) for one in size]


def _is_one(size: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a pair is a single size: no entry of a list of sizes is a number."""
    return not size or any(not isinstance(part, str | list | tuple | None) for part in size)


def _size_of(size: Any, usual: Size | None, factor: int, trained: Trained) -> Size:
    if size is None:
        if usual is None:
            seen = ", ".join(f"({height}, {width})" for height, width in trained.sizes[:8])
            hint = f"; it was trained on {seen}" if seen else ""
            raise ValueError(f"no size: the model has no default, so give size=(height, width) in pixels{hint}")
        return check_size(usual, factor)
    if isinstance(size, str):
        if usual is None:
            raise ValueError(f'size is {size!r}, and the model has no default area; give both, e.g. ("{size}", 262144)')
        return size_of_ratio(size, math.prod(usual), factor)
    if isinstance(size, list | tuple) and len(size) == 2 and isinstance(size[0], str):
        return size_of_ratio(size[0], check_whole("area", size[1], least=1), factor)
    return check_size(size, factor)


def check_seeds(seed: Any, count: int) -> list[int]:
    """Return one seed per prompt.

    Raises:
        TypeError: a seed is not a whole number.
        ValueError: the number of seeds is not that of the prompts, or a seed is outside 0..2^63 - 1.
    """
    given = list(seed) if isinstance(seed, list | tuple) else [seed] * count
    if len(given) != count:
        raise ValueError(f"{len(given)} seeds for {count} prompts; give one seed, or one per prompt")
    seeds = [check_whole("seed", value, least=0) for value in given]
    if max(seeds) >= 1 << 63:
        raise ValueError(f"seed is {max(seeds)}; expected a number below 2^63")
    return seeds


def batches(items: Sequence[Item], key: Callable[[Item], Hashable], limit: int) -> Iterator[list[int]]:
    """Indices of items in groups of at most `limit` whose keys are equal; groups in the order of their first item."""
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key(item), []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), limit):
            yield indices[start : start + limit]


def check_documents(documents: Any) -> list[list[Any]]:
    """Return documents as lists of items.

    Raises:
        TypeError: anything other than a list of lists.
        ValueError: there are none, or an empty one.
    """
    if not isinstance(documents, list | tuple) or not all(isinstance(item, list | tuple) for item in documents):
        raise TypeError('expected a list of documents, each a list of items, e.g. [[image, "Describe it."]]')
    if not documents:
        raise ValueError("no documents; expected at least one")
    for index, document in enumerate(documents):
        if not document:
            raise ValueError(f"document {index} is empty; expected at least one item to go on from")
    return [list(document) for document in documents]


def chosen_top_k(top_k: int | None | Literal["default"]) -> int | None:
    """Return a call's top-k as settings express it: None for the default, 0 for all.

    Raises:
        TypeError: a string other than "default".
    """
    if isinstance(top_k, str):
        if top_k != "default":
            raise TypeError(f'top_k is {top_k!r}; expected a whole number, None for all, or "default"')
        return None
    return top_k or 0


def text_sampling(codes: GenerationDefaults, task: Mapping[str, float], given: Mapping[str, float | None]) -> Sampling:
    """Return the sampling settings of text between pictures.

    Args:
        codes: sampling settings of codes.
        task: settings of the model's task, `text_temperature`, `text_top_k`, `text_top_p`.
        given: the caller's, None if not given.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or outside its range.
    """
    known = {"text_temperature": codes.temperature, "text_top_k": 0, "text_top_p": codes.top_p, **task}
    known |= {name: value for name, value in given.items() if value is not None}
    settings: dict[str, Any] = {name: known[f"text_{name}"] for name in ("temperature", "top_k", "top_p")}
    try:
        return Sampling(**settings)
    except (TypeError, ValueError) as error:
        # Messages begin with the setting, which the caller knows by another name.
        raise type(error)(f"text_{error}") from None
