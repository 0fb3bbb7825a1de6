"""A folder of token shards from a source: shards that are finished stay, the others are made, the last process closes the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.shards import MANIFEST, TokenizedDocument, read_entry, write_manifest, write_shard
from emu.data.shards.writing import read_content, shard_numbers
from emu.data.tokenizing.document_reader import DocumentReader
from emu.data.tokenizing.encoding_processes import Encoding, WindowTask, encode_here, encode_in_processes
from emu.data.tokenizing.ranks import Rank
from emu.data.tokenizing.records import Record, digest, problem_at
from emu.data.tokenizing.tokenizing_report import REPORT, write_report
from emu.data.tokenizing.windows import SHARD_BYTES, WINDOW_BYTES, WINDOW_RECORDS, EncodedWindow, cut
from emu.lines import BadLine, LineProblem, Place

MAX_WEIGHTS = 256
"""Different loss weights of a shard, which stores one byte a token."""
SAMPLED_SHARDS, SAMPLES = 3, 8
"""Pictures are kept for the report from the first window of the first shards: so many of each."""


@dataclass
class ShardRun:
    """Writes the shards of one rank.

    Attributes:
        output: folder of the shards.
        encoding: how records become tokens.
        reader: that `encoding` makes; loaded once, before anything is written.
        shard_size: records of a shard.
        rank: which shards are made here.
        processes: that encode.
        progress: is called with the number of records that were read.
        report: is called with the number of records of a window, and their problems, in order; may raise to stop.
        told: what this rank has noted once its shards are written, see `Rank.closing`.
    """

    output: Path
    encoding: Encoding
    reader: DocumentReader
    shard_size: int = 4096
    rank: Rank = field(default_factory=Rank)
    processes: int = 1
    progress: Callable[[int], object] = lambda number: None
    report: Callable[[int, list[LineProblem]], object] = lambda number, problems: None
    num_documents: int = 0
    num_shards: int = 0
    told: dict[str, Any] = field(default_factory=dict)

    def write(self, records: Iterator[Record]) -> None:
        """Write the shards that are not there yet; the folder is held.

        Raises:
            ValueError: another rank makes other shards of this folder now.
            Exception: what `report` raises; finished shards stay, and the folder is not to be closed.
        """
        work = digest(self.reader.state, self.encoding.source.fingerprint, self.shard_size)
        told = {"work": work, "ranks": self.rank.size}
        self.rank.begin(self.output, told)
        tasks = self._tasks(records)
        if self.processes == 1:
            results = encode_here(tasks, self.encoding.source, self.reader, self.progress)
        else:
            results = encode_in_processes(tasks, self.encoding, self.processes, self.progress)
        shard = _Shard()
        for task, window in results:
            if task.records:
                found = shard.add(task, window)
                self.report(len(task.records), found)
            if task.last and task.records:
                self._finish(task, shard)
                shard = _Shard()
            elif task.last:
                self._take(task)
        self.told = {**told, "shards": self.num_shards}
        self.rank.note(self.output, self.told)

    def _tasks(self, records: Iterator[Record]) -> Iterator[WindowTask]:
        """The windows of unfinished shards of this rank, and finished shards as tasks without records."""
        for number, block in enumerate(cut(records, self.shard_size, SHARD_BYTES)):
            self.num_shards = number + 1
            if not self.rank.takes(number):
                continue
            made_from = digest(self.reader.state, [self.encoding.source.state(record) for record in block])
            finished = read_entry(self.output, number)
            if finished is not None and finished["about"].get("input") == made_from:
                yield WindowTask(number, [], True, 0, finished)
                continue
            windows = list(cut(block, WINDOW_RECORDS, WINDOW_BYTES))
            for place, window in enumerate(windows):
                samples = SAMPLES if number < SAMPLED_SHARDS and not place else 0
                yield WindowTask(number, window, place == len(windows) - 1, samples, {"input": made_from})

    def _take(self, task: WindowTask) -> None:
        about = task.about["about"]
        found = [
            LineProblem(Place(file, line, unit), reason, message)
            for file, line, unit, reason, message in about["problems"]
        ]
        count = about.get("records", task.about["documents"] + len(found))
        self.num_documents += task.about["documents"]
        self.progress(count)
        self.report(count, found)

    def _finish(self, task: WindowTask, shard: _Shard) -> None:
        # A folder is finished only with the shards that its manifest describes.
        (self.output / MANIFEST).unlink(missing_ok=True)
        about = {
            **task.about,
            "records": shard.num_records,
            "problems": [[*problem.place, problem.reason, problem.message] for problem in shard.problems],
            "samples": shard.samples,
        }
        write_shard(self.output, task.shard, shard.documents, self.reader.tokenizer.vocabulary, about)
        self.num_documents += len(shard.documents)

    def close(self) -> bool:
        """Close the folder once all ranks have written their shards; returns whether there are documents.

        Raises:
            FileNotFoundError, DamagedShards: a shard is gone, or is not what was written.
        """
        for number in shard_numbers(self.output):
            if number >= self.num_shards:  # of an earlier run on more records
                for file in self.output.glob(f"shard-{number:05d}.*"):
                    file.unlink(missing_ok=True)
        for file in self.output.glob("shard-*.partial"):  # of processes that were killed while they wrote
            file.unlink(missing_ok=True)
        if not any(read_content(self.output, number)["documents"] for number in range(self.num_shards)):
            for name in (MANIFEST, REPORT):
                (self.output / name).unlink(missing_ok=True)
            return False
        tokenizer = self.reader.tokenizer
        write_manifest(self.output, self.num_shards, tokenizer.vocabulary, tokenizer.fingerprints)
        write_report(self.output, tokenizer)
        return True


@dataclass
class _Shard:
    """A shard whose windows come in order."""

    documents: list[TokenizedDocument] = field(default_factory=list)
    problems: list[LineProblem] = field(default_factory=list)
    samples: list[list[Any]] = field(default_factory=list)
    weights: set[float] = field(default_factory=set)
    num_records: int = 0

    def add(self, task: WindowTask, window: EncodedWindow) -> list[LineProblem]:
        """Take a window; returns its problems, those of the shard's limits among them."""
        places: dict[int, int] = {}
        extra: list[LineProblem] = []
        for number, (record, packed) in enumerate(zip(task.records, window.documents, strict=True)):
            if packed is None:
                continue
            document = packed.unpacked()
            try:
                self.weights = _with_weights(self.weights, document)
            except BadLine as error:
                extra.append(problem_at(record.place, error))
                continue
            places[number] = len(self.documents)
            self.documents.append(document)
        self.samples += [[places[number], *rest] for number, *rest in window.samples if number in places]
        order = {record.place: number for number, record in enumerate(task.records)}
        found = sorted([*window.problems, *extra], key=lambda problem: order[problem.place])
        self.problems += found
        self.num_records += len(task.records)
        return found


def _with_weights(known: set[float], document: TokenizedDocument) -> set[float]:
    """The loss weights of a shard with those of another document.

    Raises:
        BadLine: they are more than a shard holds.
    """
    together = known | set(np.unique(document.document.weights.numpy()).tolist())
    if len(together) > MAX_WEIGHTS:
        raise BadLine(
            "too many weights",
            f"the shard has {MAX_WEIGHTS} other loss weights already; round them, or lower --shard-size",
        )
    return together
