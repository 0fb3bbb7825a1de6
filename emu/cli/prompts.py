"""Prompts of a command line: files of JSON lines or of plain text, standard input, pipes, and prompts themselves.

    emu generate-images prompts.jsonl                 {"prompt": "a cat", "seed": 3, ...} per line
    emu generate-images prompts.txt                   one prompt per line
    emu generate-images "a handwritten seven" "a two" prompts themselves
    ... | emu generate-images -                       either kind of line; shell pipes, <(...), too

A line may hold a document instead of a prompt, {"items": [{"image": "cat.png"}, "make it red"]}: items as in files that `emu tokenize`
reads (`emu.data.tokenizing.document_reader`). Bad lines are counted and skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.cli.line_problems import COMMAND_LINE, Problems
from emu.data.tokenizing.line_source import names_of
from emu.data.tokenizing.records import state_of
from emu.lines import STANDARD_INPUT, BadLine, Line, Place, is_readable, read_lines, shown
from emu.pipeline import GenerationDefaults
from emu.pipeline.requests import check_seeds, check_size, sizes_of
from emu.trained import UNKNOWN

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
FILE_SUFFIXES = (*JSON_SUFFIXES, ".txt")
"""Endings that make a word the name of a file, whether it exists or not."""
CARRIED = ("id", "label")
"""Keys of a line that generation does not read and the manifest repeats."""
MAX_CODES = 1 << 18
"""Codes of the largest picture or clip that a line may ask for; the memory of a step grows with it."""


@dataclass(frozen=True)
class Request:
    """A prompt that can be drawn, with its settings.

    Attributes:
        place: where it stands.
        folder: that files in it are named from.
        prompt: its text, empty for a document.
        items: of a document, as the line writes them; None for a prompt.
        seed: its own, or the command's plus its place.
        settings: the model's defaults, the command's options and the line's own keys, in rising order.
        extra: what else the line says, e.g. its first frames.
        carried: what the manifest repeats.
        files: state of the files that it names, see `state_of`.
    """

    place: Place
    folder: Path
    prompt: str
    items: Sequence[Any] | None
    seed: int
    settings: GenerationDefaults
    extra: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Any] = ()

    def record(self) -> dict[str, Any]:
        """What is asked for, as the manifest tells it."""
        asked = {"prompt": self.prompt} if self.items is None else {"items": list(self.items)}
        about = {"line": self.place.number, **asked, "seed": self.seed, **self.settings.to_dict()}
        return {**about, **self.extra, **self.carried}

    def digest(self, model: str) -> str:
        """Tells requests apart: 16 hexadecimal digits of all that decides the output, and of what the manifest repeats."""
        told = json.dumps([self.record(), list(self.files), model], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WrittenPrompt:
    """What a line or a word says, before it is checked."""

    place: Place
    folder: Path
    table: Callable[[], Mapping[str, Any]]


def check_words(words: Sequence[str]) -> None:
    """Check that the files among the words of a command exist.

    Raises:
        FileNotFoundError: a word ends like a file's name, and there is no such file.
        ValueError: a word is empty, or names a folder.
    """
    for word in words:
        if not word.strip():
            raise ValueError("a prompt is empty; give words, a file of prompts, or - for standard input")
        if word.lower().endswith(FILE_SUFFIXES) and not is_readable(word):
            raise FileNotFoundError(
                f'there is no prompt file {word}; expected one JSON object a line, e.g. {{"prompt": "a cat"}}, or one prompt a line'
            )
        if os.sep in word and os.path.isdir(word):
            raise ValueError(f"{word} is a folder; give a file of prompts, or prompts themselves")


def written_prompts(words: Sequence[str]) -> Iterator[WrittenPrompt]:
    """What the words of a command stand for, in order: files and pipes by their lines, other words for themselves."""
    number = 0
    for word in words:
        if is_readable(word):
            yield from _file_prompts(word)
        else:
            number += 1
            yield WrittenPrompt(Place(COMMAND_LINE, number, "prompt"), Path(), _plain(word))


def _file_prompts(name: str) -> Iterator[WrittenPrompt]:
    is_json: bool | None = True if name.lower().endswith(JSON_SUFFIXES) else None
    folder = Path() if name == STANDARD_INPUT or not Path(name).is_file() else Path(name).parent
    for line in read_lines(name):
        if is_json is None:
            is_json = line.content.lstrip().startswith(b"{")
        yield WrittenPrompt(Place(line.file, line.number), folder, line.table if is_json else _line_text(line))


def _plain(text: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: {"prompt": text}


def _line_text(line: Line) -> Callable[[], Mapping[str, Any]]:
    return lambda: {"prompt": line.text().strip()}


class PromptReader:
    """Turns what lines say into requests.

    Args:
        defaults: settings where a line says nothing.
        names: settings that a line may hold.
        factors: (temporal, spatial) pixels of a code; sides of a size are multiples of the second.
        seed: of the first line where lines have none; the next ones count on from it.
        extra: other keys that a line may hold, whose values name files.
        given: what lines hold that do not say it themselves: a request for each of these and each line.
    """

    def __init__(
        self,
        defaults: GenerationDefaults,
        names: Sequence[str],
        factors: tuple[int, int],
        seed: int,
        extra: Sequence[str] = (),
        given: Sequence[Mapping[str, Any]] = ({},),
    ) -> None:
        self.defaults, self.names, self.factors, self.seed = defaults, names, factors, seed
        self.extra, self.given = extra, given

    def read(
        self, words: Sequence[str], problems: Problems, takes: Callable[[int], bool] = lambda number: True
    ) -> list[Request]:
        """The requests of the words of a command; what is wrong with others goes to `problems`.

        Args:
            words: of the command.
            problems: of the lines that `takes` says.
            takes: whether the line of a number, from 0, is reported by this process.

        Raises:
            FileNotFoundError, ValueError: a file is missing, holds something else than lines, or all of them hold nothing.
            TooManyBad: see `Problems.read`.
        """
        check_words(words)
        requests: list[Request] = []
        others = Problems(1.0, quiet=True)
        for number, written in enumerate(written_prompts(words)):
            seen = problems if takes(number) else others
            with seen.containing(written.place):
                requests += self.requests(written)
            seen.read()
        if not problems.num_read + others.num_read:
            raise ValueError(
                f'{", ".join(words)} is empty; expected one JSON object a line, e.g. {{"prompt": "a cat"}}'
            )
        return requests

    def requests(self, written: WrittenPrompt) -> list[Request]:
        """The requests of one line.

        Raises:
            TypeError, ValueError: what is wrong with it.
        """
        table = written.table()
        repeated = [{name: value for name, value in given.items() if name not in table} for given in self.given]
        return [
            self._request(written, {**table, **given})
            for number, given in enumerate(repeated)
            if given not in repeated[:number]
        ]

    def _request(self, written: WrittenPrompt, table: dict[str, Any]) -> Request:
        place = written.place
        known = ("prompt", "items", "seed", *self.names, *self.extra, *CARRIED)
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise BadLine("unknown key", f"unknown key {shown(unknown[0])}; known are {', '.join(known)}")
        prompt, items = table.get("prompt"), table.get("items")
        if prompt is not None and items is not None:
            raise BadLine("wrong value", "prompt and items in one line; expected one of them")
        if items is None and not isinstance(prompt, str):
            raise BadLine("wrong value", f"prompt is {shown(prompt)}; expected text, or items in its place")
        if items is not None and (not isinstance(items, list) or not items):
            form = '[{"image": "cat.png"}, "make it red"]'
            raise BadLine("wrong value", f"items is {shown(items)}; expected a list such as {form}")
        (prompt or "").encode()  # words of the command line may hold bytes that are not text
        extra = {name: table[name] for name in self.extra if name in table}
        named = [name for value in extra.values() for name in file_names(value)]
        named += [name for item in items or () for name in names_of(item)]
        return Request(
            place,
            written.folder,
            prompt or "",
            items,
            check_seeds(table.get("seed", self.seed + place.number - 1), 1)[0],
            self._settings(table),
            extra,
            {name: table[name] for name in CARRIED if name in table},
            [state_of(written.folder / name) for name in named],
        )

    def _settings(self, table: Mapping[str, Any]) -> GenerationDefaults:
        given = {name: table[name] for name in self.names if name in table}
        for name, value in given.items():
            if isinstance(value, int) and abs(value) >= 1 << 63:
                raise BadLine("wrong value", f"{name} is {shown(value)}; expected a number below 2^63")
        temporal, spatial = self.factors
        if given.get("size") is not None:
            (given["size"],) = sizes_of([given["size"]], 1, self.defaults.size, spatial, UNKNOWN)
        settings = self.defaults.updated(**given)
        if settings.size is None:
            raise ValueError('no size, and the model has no default; give size as [height, width] or ["4:3", 262144]')
        height, width = check_size(settings.size, spatial)
        frames = settings.frames if "frames" in self.names else 1
        if (codes := -(-frames // temporal) * (height // spatial) * (width // spatial)) > MAX_CODES:
            what = f"{frames} frames of " if frames > 1 else ""
            raise ValueError(f"{what}{height}x{width} pixels are {codes} codes; expected at most {MAX_CODES}")
        return settings


def file_names(value: Any) -> list[str]:
    """The file names in what a line says of its first frames or its picture."""
    return names_of(value if isinstance(value, dict) else {"frames": value})
