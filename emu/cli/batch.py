"""Batch generation from a file of prompts: one JSON object a line in, one output a line out, resumable.

Every finished line stands in `manifest.jsonl` with all that made it; a run skips the lines that stand there already, so that a run that
was stopped goes on where it was. A line that cannot be meant is reported with its number and skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from emu.media import png_bytes, tiled
from emu.pipeline import Emu, GenerationDefaults
from emu.pipeline.requests import batches, check_seeds, check_size
from emu_tokenizers.files import write_file

MANIFEST, OVERVIEW = "manifest.jsonl", "overview.png"
OVERVIEW_LINES = 64
"""So many of the first finished lines stand in the overview."""
SETTINGS = ("size", "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")
CARRIED = ("id", "label")
"""Keys of a line that generation does not read and the manifest repeats."""


@dataclass(frozen=True)
class Request:
    """A line of the prompt file that can be meant.

    Attributes:
        line: its number, from 1.
        prompt: its text.
        seed: its own, or the command's plus its place.
        settings: the model's defaults, the command's options and the line's own keys, in rising order.
        extra: what else the line says, e.g. its first frames.
        carried: what the manifest repeats.
    """

    line: int
    prompt: str
    seed: int
    settings: GenerationDefaults
    extra: dict[str, Any]
    carried: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """The line as the manifest tells it."""
        about = {"line": self.line, "prompt": self.prompt, "seed": self.seed, **self.settings.to_dict()}
        return {**about, **self.extra, **self.carried}

    @property
    def stem(self) -> str:
        """Name of its output, without suffix."""
        return f"{self.line:06d}-seed{self.seed}"


class LineReader:
    """Reads prompt files.

    Args:
        defaults: settings where a line says nothing.
        names: settings that a line may hold.
        factor: sides of a size are multiples of it.
        seed: of the first line where lines have none; the next ones count on from it.
        extra: other keys that a line may hold.
    """

    def __init__(
        self, defaults: GenerationDefaults, names: Sequence[str], factor: int, seed: int, extra: Sequence[str] = ()
    ) -> None:
        self.defaults, self.names, self.factor, self.seed, self.extra = defaults, names, factor, seed, extra

    def read(self, file: Path) -> tuple[list[Request], dict[int, str]]:
        """The requests of a file, and what is wrong with its other lines, by number.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has no lines.
        """
        if not file.is_file():
            raise FileNotFoundError(
                f'no prompt file {file}; expected one JSON object a line, e.g. {{"prompt": "a cat"}}'
            )
        requests: list[Request] = []
        problems: dict[int, str] = {}
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if line.strip():
                try:
                    requests.append(self.request(number, line))
                except (ValueError, TypeError) as error:
                    problems[number] = str(error)
        if not requests and not problems:
            raise ValueError(f'{file} is empty; expected one JSON object a line, e.g. {{"prompt": "a cat"}}')
        return requests, problems

    def request(self, number: int, line: bytes) -> Request:
        """One line.

        Raises:
            TypeError, ValueError: what is wrong with it.
        """
        try:
            table = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"no JSON: {error}") from error
        if not isinstance(table, dict):
            raise TypeError(f"expected a JSON object, got {type(table).__name__}")
        known = ("prompt", "seed", *self.names, *self.extra, *CARRIED)
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise ValueError(f"unknown key {', '.join(unknown)}; known are {', '.join(known)}")
        if not isinstance(table.get("prompt"), str):
            raise TypeError(f"prompt is {table.get('prompt')!r}; expected text")
        given = {name: table[name] for name in self.names if name in table}
        if isinstance(given.get("size"), list):
            given["size"] = tuple(given["size"])
        settings = self.defaults.updated(**given)
        if settings.size is None:
            raise ValueError("no size, and the model has no default; give size as [height, width]")
        check_size(settings.size, self.factor)
        return Request(
            number,
            table["prompt"],
            check_seeds(table.get("seed", self.seed + number - 1), 1)[0],
            settings,
            {name: table[name] for name in self.extra if name in table},
            {name: table[name] for name in CARRIED if name in table},
        )


class Manifest:
    """The finished lines of an output folder.

    Args:
        folder: where outputs lie.
        model: what made them; lines that another model finished are done again.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.file, self.model = folder / MANIFEST, model
        self._records = {record["line"]: record for record in self._read()}

    def _read(self) -> Iterator[dict[str, Any]]:
        if self.file.is_file():
            for line in self.file.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the last line of a run that was killed while it wrote
                    continue
                if isinstance(record, dict) and "line" in record:
                    yield record

    def is_finished(self, request: Request) -> bool:
        """Whether the folder holds the output of this very request."""
        record = self._records.get(request.line)
        return (
            record is not None
            and record.get("request") == self._digest(request)
            and all((self.file.parent / name).exists() for name in record.get("files", [""]))
        )

    def add(self, request: Request, files: Sequence[Path]) -> None:
        """Note that a request is finished, on the disk when this returns."""
        names = [file.relative_to(self.file.parent).as_posix() for file in files]
        record = {**request.record(), "files": names, "model": self.model, "request": self._digest(request)}
        self._records[request.line] = record
        with self.file.open("ab") as file:
            if file.tell() and not self._ends_with_newline():
                file.write(b"\n")
            file.write(_json_line(record))
            file.flush()
            os.fsync(file.fileno())

    def close(self, requests: Sequence[Request]) -> list[list[Path]]:
        """Rewrite the file with one record for each finished line of the prompt file, in order; returns their files."""
        records = [self._records[request.line] for request in requests if self.is_finished(request)]
        write_file(self.file, b"".join(map(_json_line, records)))
        return [[self.file.parent / name for name in record["files"]] for record in records]

    def _ends_with_newline(self) -> bool:
        with self.file.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _digest(self, request: Request) -> str:
        told = json.dumps([request.record(), self.model], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def _json_line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def run(
    requests: Sequence[Request],
    problems: dict[int, str],
    manifest: Manifest,
    make: Callable[[list[Request]], list[list[Path]]],
    show: Callable[[list[Path]], Image.Image],
    *,
    columns: int,
    batch_size: int,
    unit: str,
) -> int:
    """Make what is not finished yet, in batches of equal settings.

    Args:
        requests: the lines that can be meant.
        problems: what is wrong with the others, by number.
        manifest: of the output folder.
        make: generates and writes the outputs of some requests, and returns their files.
        show: a picture of the files of one request, for `overview.png`.
        columns: how many of them stand side by side there.
        batch_size: requests that are made at a time.
        unit: what is counted.

    Returns:
        The exit code: 1 where a line was bad.
    """
    for number, problem in problems.items():
        print(f"line {number}: {problem}", file=sys.stderr)
    problems = dict(problems)
    todo = [request for request in requests if not manifest.is_finished(request)]
    made = 0
    with tqdm(total=len(requests), initial=len(requests) - len(todo), unit=unit, dynamic_ncols=True) as bar:
        for indices in batches(todo, lambda request: (request.settings, tuple(sorted(request.extra))), batch_size):
            for request, files in _made([todo[index] for index in indices], make, problems):
                manifest.add(request, files)
                made += 1
            bar.update(len(indices))
    finished = manifest.close(requests)
    if finished:
        sheet = tiled([show(files) for files in finished[:OVERVIEW_LINES]], columns)
        write_file(manifest.file.with_name(OVERVIEW), png_bytes(sheet))
    before = len(requests) - len(todo)
    print(f"{made} {unit}s made, {before} were finished before, {len(problems)} bad lines; see {manifest.file}")
    return 1 if problems else 0


def _made(
    batch: list[Request], make: Callable[[list[Request]], list[list[Path]]], problems: dict[int, str]
) -> Iterator[tuple[Request, list[Path]]]:
    """Outputs of a batch; where the batch cannot be made, those of its lines that can, one by one."""
    try:
        yield from zip(batch, make(batch), strict=True)
    except (ValueError, TypeError, FileNotFoundError) as error:
        if len(batch) == 1:
            problems[batch[0].line] = str(error)
            tqdm.write(f"line {batch[0].line}: {error}", file=sys.stderr)
            return
        for request in batch:
            yield from _made([request], make, problems)


def parser(command: str, description: str, defaults: str) -> argparse.ArgumentParser:
    """Options that both commands share."""
    options = argparse.ArgumentParser(prog=f"emu {command}", description=description)
    options.add_argument(
        "prompts", type=Path, help=f"file with one JSON object a line: prompt, and if wished seed, {defaults}"
    )
    options.add_argument("--model", default="digits", help="folder of a trained model, or a bundled one (%(default)s)")
    options.add_argument("--output", type=Path, required=True, help="folder for the outputs and the manifest")
    options.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    options.add_argument("--guidance-scale", type=float, help="1 leaves guidance out")
    options.add_argument("--negative-prompt", help="what guidance moves away from")
    options.add_argument("--temperature", type=float, help="0 is greedy")
    options.add_argument("--top-k", type=int, help="draw among so many codes; 0 means all")
    options.add_argument("--top-p", type=float, help="draw among the codes that hold this share")
    options.add_argument(
        "--seed", type=int, default=0, help="of the first line where lines have none; the next count on from it"
    )
    options.add_argument("--batch-size", type=int, default=16, help="lines at a time (%(default)s)")
    options.add_argument(
        "--window", type=int, default=1, help="above 1: exact speculative decoding of so many codes at once"
    )
    options.add_argument(
        "--deterministic", action="store_true", help="bit for bit the same outputs whatever the batch size; slower"
    )
    options.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the transformer; by default float32, for released models that of their files",
    )
    return options


def load(options: argparse.Namespace) -> Emu:
    """The model that the options name."""
    dtype = getattr(torch, options.dtype) if options.dtype else None
    return Emu.from_pretrained(options.model, device=options.device, dtype=dtype, deterministic=options.deterministic)
