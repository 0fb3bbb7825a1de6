"""The second half of `emu tokenize`: what needs the tokenizers, and so PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from tqdm import tqdm

from emu.cli.line_problems import PROBLEMS, Problems, TooManyBad
from emu.data.tokenizing.encoding_processes import Encoding, LostProcess
from emu.data.tokenizing.ranks import Rank
from emu.data.tokenizing.records import Record, RecordSource
from emu.data.tokenizing.shard_run import ShardRun
from emu.data.tokenizing.tokenizing_report import REPORT, stored_problems
from emu.lines import LineProblem


def write_shards(options: argparse.Namespace, source: RecordSource, records: Iterator[Record], processes: int) -> int:
    """Write the shards of a source, with progress, and say what became of its records.

    Args:
        options: of the command.
        source: that is read.
        records: of the source, all of them.
        processes: that encode.

    Returns:
        The exit code: 0 where every record became a document, 1 where some did not.

    Raises:
        FileNotFoundError, ValueError: the request is wrong; nothing was written.
    """
    problems, rank = Problems(options.max_bad), Rank.from_environment()
    encoding = Encoding(source, options.tokenizer, options.size, options.loss_on, options.device)
    length = source.length
    bar = tqdm(total=length and -(-length // rank.size), unit="document", dynamic_ncols=True)
    is_written = closed = False
    with bar, rank.holding(options.output, "emu tokenize"):
        run = ShardRun(options.output, encoding, encoding.reader(), options.shard_size, rank, processes, bar.update)

        def report(number: int, found: list[LineProblem]) -> None:
            for problem in found:
                problems.add(problem)
            problems.read(number)

        run.report = report
        try:
            run.write(records)
            is_written = True
            closed = rank.size == 1 and _closed(run)
        except TooManyBad as error:
            print(error, file=sys.stderr)
        except LostProcess as error:
            print(f"emu tokenize: {error}", file=sys.stderr)
            return 1
        finally:
            if rank.size == 1:
                problems.write(run.output)
    if is_written and rank.size > 1:
        closed = _closed(run)
    _say(run, problems, closed)
    return 1 if problems.num_bad else 0


def _closed(run: ShardRun) -> bool:
    """Close the folder as the last rank, the problems of all ranks among what is written; returns whether it was closed."""
    with run.rank.closing(run.output, run.told) as is_last:
        closed = is_last and run.close()
        if closed and run.rank.size > 1:
            everyone = Problems(1.0, quiet=True)
            for problem in stored_problems(run.output, run.num_shards):
                everyone.add(problem)
            everyone.write(run.output)
    return closed


def _say(run: ShardRun, problems: Problems, closed: bool) -> None:
    seen = f"; see {run.output / PROBLEMS}" if problems.num_bad else ""
    print(f"{run.num_documents} documents in {run.output}, {problems.num_bad} bad lines{seen}")
    if closed:
        print(f"lengths, sizes and reconstructions: {run.output / REPORT}")
    elif run.rank.size > 1:
        print(f"rank {run.rank.number} is done; the last of the {run.rank.size} ranks closes the folder")
