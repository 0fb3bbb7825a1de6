"""Batch generation: one output per prompt, resumable, in a folder that many runs may share.

Every finished request is recorded in `manifest.jsonl` with everything that produced it; a run skips requests recorded there, so an
interrupted run resumes where it stopped. A line that cannot be drawn is reported with its location and skipped.

Launched by torchrun or srun, each process takes its share of the requests, and the last to finish writes the manifest of all. The
outputs are those of one process, whatever the number of processes, kills and restarts; bit for bit with --deterministic.
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

from emu.cli.batch_options import size_of
from emu.cli.batch_outputs import FILES, BatchOutputs
from emu.cli.line_problems import PROBLEMS, Problems, TooManyBad
from emu.cli.prompts import PromptReader, Request
from emu.data.tokenizing.document_reader import DocumentReader
from emu.data.tokenizing.picture_sizes import Sizing
from emu.data.tokenizing.ranks import Rank
from emu.generation.limits import check_whole
from emu.lines import Place, is_readable
from emu.pipeline import Emu
from emu.pipeline.drawing_memory import free_memory, memory_budget, shown_bytes
from emu.pipeline.requests import Size, batches, check_seeds
from emu_tokenizers.files import holding

AHEAD = 4
"""So many batches of lines are read together, so that lines of one size that lie apart are drawn together."""
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
        media: suffix of the one file of a result among the samples of a tar.
        note: what else the manifest holds of a result, of JSON's types.
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
        media: str = ".png",
        note: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        defaults = emu.defaults.updated(**{name: getattr(options, name) for name in settings if name != "size"})
        defaults = defaults.updated(size=size_of(options, emu))
        vision = emu.tokenizer.vision
        factors = (1 if vision is None else vision.temporal_factor, emu.spatial_factor)
        self.reader = PromptReader(defaults, settings, factors, options.seed, extra, given)
        self.command, self.options, self.columns, self.media, self.note = command, options, columns, media, note
        self.modality, self.unit = modality, unit
        self.batch_size = check_whole("--batch-size", options.batch_size, least=1)
        check_whole("--window", options.window, least=1)
        check_whole("--tar-size", options.tar_size, least=1)
        check_seeds(options.seed, 1)
        memory_budget(options.memory, emu.model.device)
        self.problems, self.emu, self.rank = Problems(options.max_bad), emu, Rank.from_environment()
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
        output, rank = self.options.output, self.rank
        for word in self.options.prompts if rank.size > 1 else ():
            if is_readable(word) and not Path(word).is_file():
                raise ValueError(
                    f"{word} can be read by one process, and this is one of {rank.size}; write the lines to a file"
                )
        try:
            requests = self.reader.read(self.options.prompts, self.problems, rank.takes)
        except TooManyBad as error:
            print(error, file=sys.stderr)
            if rank.size == 1:
                with holding(output, self.command):
                    self.problems.write(output)
            return 1
        tar_size = None if self.options.format == FILES else self.options.tar_size
        outputs = BatchOutputs(
            output, self.model, self.command, rank, tar_size, self.media, save, show, self.columns, self.note
        )
        requests = list({request.digest(self.model): request for request in requests}.values())
        problems: Problems | None = None
        with rank.holding(output, self.command):
            outputs.begin(requests)
            try:
                is_done = self._make(outputs, requests, prepare, generate)
            finally:
                if rank.size == 1:
                    problems = outputs.close(requests, self.problems)
            if is_done and rank.size > 1:
                outputs.note(self.problems)
        if is_done and rank.size > 1:
            problems = outputs.close(requests, self.problems)
        return self._told(outputs, is_done, problems)

    def _make(
        self,
        outputs: BatchOutputs,
        requests: Sequence[Request],
        prepare: Callable[[Request], Any],
        generate: Callable[[list[Request], list[Any]], Iterable[Any]],
    ) -> bool:
        """Make what is left of this rank's share; returns whether it is done, but for bad lines."""
        share = outputs.share(requests)
        left = [[request for request in block if outputs.manifest.find(request) is None] for _, block in share]
        total, todo = sum(len(block) for _, block in share), [request for block in left for request in block]
        self.num_before, self.num_made = total - len(todo), 0
        try:
            self._tell_memory(todo)
            with tqdm(total=total, initial=self.num_before, unit=self.unit, dynamic_ncols=True) as bar:
                for (number, block), new in zip(share, left, strict=True):
                    for indices in batches(new, _kind, AHEAD * self.batch_size):
                        begun = bar.n
                        batch = [new[index] for index in indices]
                        for request, result in results_of(batch, prepare, generate, self.problems):
                            outputs.add(request, result)
                            self.num_made += 1
                            bar.update()
                        bar.update(begun + len(indices) - bar.n)
                    outputs.pack(number, block)
        except TooManyBad as error:
            print(error, file=sys.stderr)
            return False
        return True

    def _told(self, outputs: BatchOutputs, is_done: bool, problems: Problems | None) -> int:
        """Say what was made; returns the exit code.

        Bad lines are an error of the rank that closes the folder: launchers end all ranks when one fails.
        """
        made, bad, folder = self.num_made, self.problems.num_bad, outputs.folder
        told = f"{made} {self.unit}{'s' * (made != 1)} made, {self.num_before} were finished before, {bad} bad lines"
        if self.rank.size > 1:
            told = f"rank {self.rank.number}: {told}"
        if problems is None:
            print(f"{told}; the last of the {self.rank.size} ranks writes {outputs.manifest.file}")
            return 0 if is_done else 1
        print(f"{told}; see {outputs.manifest.file}" + (f" and {folder / PROBLEMS}" if problems.num_bad else ""))
        return 1 if problems.num_bad or not is_done else 0

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


def _kind(request: Request) -> Hashable:
    """Requests of one kind are drawn by one call, which takes pictures of several sizes, and a file for each of them."""
    extra = [
        (name, None if isinstance(value, str | list | dict) else repr(value)) for name, value in request.extra.items()
    ]
    return replace(request.settings, size=None), tuple(extra)


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
