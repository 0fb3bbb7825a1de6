"""What is wrong with single lines: said, counted, written down, and a reason to stop where it is too many."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from bisect import insort
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu.lines import LineProblem, Place, message_of, reason_of
from emu_tokenizers.files import natural_key, write_file

PROBLEMS = "problems.jsonl"
COMMAND_LINE = "command line"
"""The file of places that the user's words name."""
EXAMPLES = 20
"""Examples of each reason that are printed, as they are found, and written down: the first ones by their place."""
ENOUGH_READ = 200
"""Lines after which the share of bad ones can stop a run."""


class TooManyBad(Exception):
    """The share of bad lines is larger than the user allows."""


class Problems:
    """The problems of a run.

    Args:
        max_bad: share of bad lines that stops the run once `ENOUGH_READ` have been read.
        quiet: count problems without printing them.
    """

    def __init__(self, max_bad: float, quiet: bool = False) -> None:
        if not 0 <= max_bad <= 1:
            raise ValueError(f"--max-bad is {max_bad}; expected a share from 0 to 1")
        self.max_bad, self.quiet = max_bad, quiet
        self.num_read = 0
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[LineProblem]] = {}

    @property
    def num_bad(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def add(self, problem: LineProblem) -> None:
        """Count a problem and print it, the first ones of each reason."""
        count = self.counts[problem.reason] = self.counts.get(problem.reason, 0) + 1
        self._keep(problem)
        if self.quiet:
            return
        if count <= EXAMPLES:
            tqdm.write(f"{problem.place}: {problem.message}", file=sys.stderr)
        elif count == EXAMPLES + 1:
            tqdm.write(f"more problems of this kind ({problem.reason}) are only counted", file=sys.stderr)

    def _keep(self, problem: LineProblem) -> None:
        kept = self.examples.setdefault(problem.reason, [])
        insort(kept, problem, key=_order)
        del kept[EXAMPLES:]

    def table(self) -> dict[str, Any]:
        """Counts and examples as JSON has them, for `take`."""
        examples = [
            [*problem.place, problem.reason, problem.message] for kept in self.examples.values() for problem in kept
        ]
        return {"counts": self.counts, "examples": examples}

    def take(self, table: Mapping[str, Any]) -> None:
        """Count the problems of another run, from its `table`."""
        for reason, count in table["counts"].items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        for file, number, unit, reason, message in table["examples"]:
            self._keep(LineProblem(Place(file, number, unit), reason, message))

    def read(self, number: int = 1) -> None:
        """Count lines that were read, good or bad.

        Raises:
            TooManyBad: of enough lines too large a share was bad.
        """
        self.num_read += number
        self.check()

    def check(self) -> None:
        """Raise `TooManyBad` where of enough lines too large a share is bad."""
        if self.num_read >= ENOUGH_READ and self.num_bad > self.max_bad * self.num_read:
            raise TooManyBad(
                f"stopped: {self.num_bad} of {self.num_read} lines are bad, more than --max-bad {self.max_bad:g}"
            )

    @contextmanager
    def containing(self, place: Place, found: list[LineProblem] | None = None) -> Iterator[None]:
        """Make any error of the block the problem of one place, which is also added to `found`.

        Strangers' lines and files break parsers, decoders and libraries in ways that nobody can list (OSError, OverflowError,
        RecursionError, struct.error, ...), and none of them is a reason to lose the other lines. Only interruptions pass.
        """
        try:
            yield
        except Exception as error:
            if os.environ.get("EMU_TRACEBACK"):
                traceback.print_exc()
            problem = LineProblem(place, reason_of(error), message_of(error))
            self.add(problem)
            if found is not None:
                found.append(problem)

    def write(self, folder: Path) -> None:
        """Write `problems.jsonl`: a line for each reason, with its count and first examples; none where there are no problems."""
        file = folder / PROBLEMS
        if not self.counts:
            file.unlink(missing_ok=True)
            return
        ordered = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        write_file(file, b"".join(map(self._report, ordered)))

    def _report(self, reason: str) -> bytes:
        examples: list[dict[str, Any]] = [
            {"file": place.file, place.unit: place.number, "message": message}
            for place, _, message in self.examples[reason]
        ]
        table = {"reason": reason, "count": self.counts[reason], "examples": examples}
        return (json.dumps(table, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _order(problem: LineProblem) -> tuple[Any, ...]:
    return natural_key(problem.place.file), problem.place.number


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--max-bad` of commands that read lines."""
    parser.add_argument(
        "--max-bad",
        type=float,
        default=0.02,
        metavar="SHARE",
        help=f"stop if a larger share of lines is bad, once {ENOUGH_READ} have been read (%(default)s); otherwise bad ones are skipped",
    )
