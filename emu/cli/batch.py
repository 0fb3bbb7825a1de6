"""Batch generation: one output a prompt, resumable, in a folder that many runs may share.

Every finished request stands in `manifest.jsonl` with all that made it; a run skips those that stand there already, so that a run that was
stopped goes on where it was. A line that cannot be drawn is reported with its place and left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from tqdm import tqdm

from emu.cli.line_problems import PROBLEMS, Problems, TooManyBad, add_option
from emu.cli.manifest import OutputManifest
from emu.cli.prompts import PromptReader, Request, check_words
from emu.data.tokenizing.document_reader import DocumentReader
from emu.data.tokenizing.picture_sizes import Sizing
from emu.generation.limits import check_whole
from emu.lines import Place
from emu.media import png_bytes, tiled
from emu.pipeline import Emu
from emu.pipeline.drawing_memory import free_memory, memory_budget, shown_bytes
from emu.pipeline.requests import Size, batches, check_seeds, sizes_of
from emu_tokenizers.files import holding, write_file

OVERVIEW = "overview.png"
AHEAD = 4
"""So many batches of lines are read together, so that lines of one size that lie apart are drawn together."""
OVERVIEW_LINES = 64
"""So many of the first finished requests stand in the overview."""
SETTINGS = ("size", "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")


class Placed(Protocol):
    """What stands at a place."""

    @property
    def place(self) -> Place:
        """Where it stands, for messages."""
        ...


Item = TypeVar("Item", bound=Placed)


class Batch:
    """A run of a batch command.

    Args:
        command: its name, e.g. "emu generate-images".
        options: of `parser`.
        emu: the model.
        modality: of what is made.
        unit: what is made, for messages.
        settings: names of the settings that options and lines may hold.
        extra: other keys that lines may hold, whose values name files or are numbers.
        given: what lines hold that do not say it themselves, see `PromptReader`.
        columns: how many outputs stand side by side in `overview.png`.
    """

    def __init__(
        self,
        command: str,
        options: argparse.Namespace,
        emu: Emu,
        modality: str,
        unit: str,
        settings: Sequence[str] = SETTINGS,
        extra: Sequence[str] = (),
        given: Sequence[Mapping[str, Any]] = ({},),
        columns: int = 8,
    ) -> None:
        defaults = emu.defaults.updated(**{name: getattr(options, name) for name in settings if name != "size"})
        defaults = defaults.updated(size=size_of(options, emu))
        vision = emu.tokenizer.vision
        factors = (1 if vision is None else vision.temporal_factor, emu.spatial_factor)
        self.reader = PromptReader(defaults, settings, factors, options.seed, extra, given)
        self.command, self.options, self.columns = command, options, columns
        self.modality, self.unit = modality, unit
        self.batch_size = check_whole("--batch-size", options.batch_size, least=1)
        check_whole("--window", options.window, least=1)
        check_seeds(options.seed, 1)
        memory_budget(options.memory, emu.model.device)
        self.problems, self.emu = Problems(options.max_bad), emu
        self.model = f"{options.model} {emu.fingerprint}" + (f" {options.dtype}" if options.dtype else "")

    def document(self, request: Request) -> str | list[Any]:
        """What a request draws after: its prompt, or its items with pictures and clips at the size of what is drawn.

        A tokenizer with a rule of its own for the sizes of pictures (Emu3.5) brings them to theirs.

        Raises:
            BadLine: an item or its file cannot be read.
        """
        if request.items is None:
            return request.prompt
        return self.sizing(request).values(request.items)

    def sizing(self, request: Request) -> DocumentReader:
        """Reads the files of a request."""
        return reader_of(self.emu, request.folder, request.settings.size)

    def drawn(self, batch: Sequence[Request]) -> dict[str, Any]:
        """What the jobs of an `Emu` are told of a batch beside its documents: the settings and each request's size and seed."""
        options, settings = self.options, batch[0].settings
        told = {name: getattr(settings, name) for name in self.reader.names if name != "size"}
        return {
            **told,
            "size": [request.settings.size for request in batch],
            "seed": [request.seed for request in batch],
            "window": options.window,
            "batch_size": self.batch_size,
            "memory": options.memory,
        }

    def run(
        self,
        prepare: Callable[[Request], Any],
        generate: Callable[[list[Request], list[Any]], Iterable[Any]],
        save: Callable[[Any, Path], list[Path]],
        show: Callable[[list[Path]], Image.Image],
    ) -> int:
        """Make what is not finished yet, in batches of equal settings.

        Args:
            prepare: reads the files that a request names; its errors are the problem of that request.
            generate: makes the results of some requests of equal settings from what `prepare` gave, one after another.
            save: writes a result to a path without suffix, and returns the files.
            show: a picture of the files of one request, for `overview.png`.

        Returns:
            The exit code: 1 where a line was bad.

        Raises:
            FileNotFoundError, ValueError: there are no prompts; nothing was written.
        """
        output: Path = self.options.output
        try:
            requests = self.reader.read(self.options.prompts, self.problems)
        except TooManyBad as error:
            print(error, file=sys.stderr)
            with holding(output, self.command):
                self.problems.write(output)
            return 1
        with holding(output, self.command):
            manifest = OutputManifest(output, self.model)
            requests = list({request.digest(self.model): request for request in requests}.values())
            todo = [request for request in requests if manifest.find(request) is None]
            made = 0
            try:
                self._tell_memory(todo)
                with self._bar(len(requests), len(requests) - len(todo)) as bar:
                    for indices in batches(todo, _kind, AHEAD * self.batch_size):
                        batch = [todo[index] for index in indices]
                        begun = bar.n
                        for request, result in results_of(batch, prepare, generate, self.problems):
                            stem = manifest.stem(request, request.seed)
                            manifest.add(request, save(result, output / stem))
                            made += 1
                            bar.update()
                        bar.update(begun + len(indices) - bar.n)
            except TooManyBad as error:
                print(error, file=sys.stderr)
            finally:
                self.problems.write(output)
                records = manifest.close(requests)
            if records:
                files = [[output / name for name in record["files"]] for record in records[:OVERVIEW_LINES]]
                sheet = tiled(list(map(show, files)), self.columns)
                write_file(output / OVERVIEW, png_bytes(sheet, {"model": self.model, "first": len(files)}))
        before = len(requests) - len(todo)
        told = f"{made} {self.unit}{'s' * (made != 1)} made, {before} were finished before, {self.problems.num_bad} bad lines"
        print(f"{told}; see {manifest.file}" + (f" and {output / PROBLEMS}" if self.problems.num_bad else ""))
        return 1 if self.problems.num_bad else 0

    def _tell_memory(self, requests: Sequence[Request]) -> None:
        """Print what drawing will take, before it begins."""
        if not requests:
            return
        largest = max(
            (request.settings for request in requests), key=lambda one: math.prod(one.size or ()) * one.frames
        )
        prompt = max(len(request.items or ()) for request in requests)
        memory = self.emu.memory_of(
            self.modality,
            size=largest.size,
            frames=largest.frames,
            guidance_scale=largest.guidance_scale,
            overlap=getattr(self.options, "overlap", None),
            blocks_before=prompt,
            window=self.options.window,
        )
        device = self.emu.model.device
        budget, free = memory_budget(self.options.memory, device), free_memory(device)
        count = max(1, memory.fitting(min(self.batch_size, len(requests)), budget))
        told = f"{count} {self.unit}{'s' * (count != 1)} at a time: about {shown_bytes(memory.peak(count))} beside the model"
        print(told + ("" if free is None else f"; {shown_bytes(free)} are free"), file=sys.stderr)

    def _bar(self, total: int, initial: int) -> tqdm:
        return tqdm(total=total, initial=initial, unit=self.unit, dynamic_ncols=True)


def _kind(request: Request) -> Hashable:
    """Requests of one kind are drawn by one call, which takes pictures of several sizes, and a file for each of them."""
    extra = [
        (name, None if isinstance(value, str | list | dict) else repr(value)) for name, value in request.extra.items()
    ]
    return replace(request.settings, size=None), tuple(extra)


def size_of(options: argparse.Namespace, emu: Emu) -> Size | None:
    """(height, width) of the options --size, or --ratio and --area; None where they say nothing.

    Raises:
        ValueError: both, or an area without a ratio.
    """
    if options.ratio is None:
        if options.area is not None:
            raise ValueError(f"--area {options.area} without --ratio; give both, or --size")
        return options.size and (options.size[0], options.size[1])
    if options.size:
        raise ValueError("--size and --ratio; give one of them")
    ratio = options.ratio if options.area is None else (options.ratio, options.area)
    return sizes_of([ratio], 1, emu.defaults.size, emu.spatial_factor, emu.trained)[0]


def reader_of(emu: Emu, folder: Path, size: Size | None) -> DocumentReader:
    """Reads the files that documents name from a folder, as a model takes them.

    Args:
        emu: the model.
        folder: that names start from.
        size: (height, width) of pictures and clips, None for their own; a tokenizer with a rule of its own brings pictures to theirs.
    """
    tokenizer = emu.tokenizer
    factor = 1 if tokenizer.vision is None else tokenizer.vision.spatial_factor
    fixed = size if tokenizer.resize is None else None
    return DocumentReader(tokenizer, folder, Sizing(factor, fixed, resize=tokenizer.resize, clips=False))


def results_of(
    batch: Sequence[Item],
    prepare: Callable[[Item], Any],
    generate: Callable[[list[Item], list[Any]], Iterable[Any]],
    problems: Problems,
) -> Iterator[tuple[Item, Any]]:
    """Results of a batch of requests; what is wrong with some of them goes to `problems`.

    Raises:
        TooManyBad: see `Problems.read`.
    """
    ready: list[tuple[Item, Any]] = []
    for request in batch:
        with problems.containing(request.place):
            ready.append((request, prepare(request)))
    problems.check()
    if ready:
        yield from _generated(ready, generate, problems)
    problems.check()


def _generated(
    ready: list[tuple[Item, Any]], generate: Callable[[list[Item], list[Any]], Iterable[Any]], problems: Problems
) -> Iterator[tuple[Item, Any]]:
    """Results of a batch; where the batch cannot be made, those of its requests that can, one by one."""
    done = 0
    try:
        results = generate([request for request, _ in ready], [prepared for _, prepared in ready])
        for (request, _), result in zip(ready, results, strict=True):
            yield request, result
            done += 1
        return
    except (ValueError, TypeError, OverflowError, torch.OutOfMemoryError):
        if len(ready) == 1:
            with problems.containing(ready[0][0].place):
                raise
            return
    for one in ready[done:]:
        yield from _generated([one], generate, problems)


def parser(command: str, description: str, keys: str) -> argparse.ArgumentParser:
    """Options that both commands share; `keys` are those of a line."""
    options = argparse.ArgumentParser(prog=f"emu {command}", description=description)
    options.add_argument(
        "prompts",
        nargs="+",
        help=f"prompts, or files of them (- is standard input): a prompt a line, or a JSON object with prompt, or with the items of a "
        f"document, and optionally seed, {keys}",
    )
    options.add_argument("--model", default="digits", help="folder of a trained model, or a bundled one (%(default)s)")
    options.add_argument("--output", type=Path, required=True, help="folder for the outputs and the manifest")
    options.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    options.add_argument(
        "--ratio", metavar="WIDTH:HEIGHT", help="in place of --size, e.g. 4:3, of the default size's area"
    )
    options.add_argument("--area", type=int, metavar="PIXELS", help="with --ratio")
    options.add_argument("--guidance-scale", type=float, help="1 leaves guidance out")
    options.add_argument("--negative-prompt", help="what guidance moves away from")
    options.add_argument("--temperature", type=float, help="0 is greedy")
    options.add_argument("--top-k", type=int, help="draw among the N most likely codes; 0 means all")
    options.add_argument("--top-p", type=float, help="draw among the codes that hold this share")
    options.add_argument(
        "--seed", type=int, default=0, help="of the first line where lines have none; the next count on from it"
    )
    options.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="lines at a time, fewer where memory does not hold them (%(default)s)",
    )
    options.add_argument("--memory", help='what drawing may take, e.g. "8GB" (most of what is free)')
    options.add_argument("--window", type=int, default=1, help="above 1: exact speculative decoding of N codes at once")
    options.add_argument(
        "--deterministic", action="store_true", help="bit for bit the same outputs whatever the batch size; slower"
    )
    options.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the transformer; by default float32, for released models that of their files",
    )
    add_option(options)
    return options


def load(options: argparse.Namespace) -> Emu:
    """The model that the options name, once the prompts are known to be there."""
    check_words(options.prompts)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    return Emu.from_pretrained(options.model, device=options.device, dtype=dtype, deterministic=options.deterministic)
