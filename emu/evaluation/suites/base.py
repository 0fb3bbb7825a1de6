"""What a suite is: options, what it prepares, what it measures, and the report that it hands back.

    from emu.evaluation.suites import Report, register

    class Lengths:
        summary = "how long the prompts of a folder are"

        def add_options(self, parser):
            parser.add_argument("--limit", type=int, default=10)

        def prepare(self, request):
            return (Path(request.model) / "prompts.txt").read_text().splitlines()[: request.limit]

        def run(self, subject, log):
            return Report({"prompts": len(subject)}, {"prompts/longest": max(map(len, subject))})

    register("lengths", Lengths())

Then `emu evaluate FOLDER --suite lengths --limit 5` measures FOLDER, and writes `lengths.json` and `metrics.json` beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from emu.evaluation.figures import Figure
from emu.evaluation.measures import Measure
from emu_tokenizers.files import read_json, write_file, write_json

METRICS_FILE = "metrics.json"

Log: TypeAlias = Callable[[str], None]
"""Takes a line about what was just measured; `print` is one."""


class Unsuited(ValueError):
    """A model was not trained for what a suite measures, or nothing was given to measure it with: `--suite all` leaves the suite out."""


@dataclass(frozen=True)
class Report:
    """What a suite found.

    Attributes:
        table: everything, of JSON's types.
        figures: name -> number; those of all suites are gathered in one `metrics.json`.
        picture: a PNG file, or None.
        measures: what is known of some figures besides their number: intervals, and the single items by which models are compared.
        gallery: more pictures, for the page of several suites.
        note: what the picture shows, for that page.
        exit_code: of the command: 1 where something is wrong with what was measured.
    """

    table: Mapping[str, Any]
    figures: Mapping[str, float] = field(default_factory=dict)
    picture: bytes | None = None
    exit_code: int = 0
    measures: Mapping[str, Measure] = field(default_factory=dict)
    gallery: Sequence[Figure] = ()
    note: str = ""

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write `<name>.json`, `<name>.png` where there is a picture, and the figures into `metrics.json`.

        Figures of other suites in `metrics.json` stay.

        Returns:
            The files.
        """
        files = [folder / f"{name}.json"]
        write_json(files[0], self.table)
        if self.picture is not None:
            files.append(folder / f"{name}.png")
            write_file(files[-1], self.picture)
        if self.figures:
            files.append(folder / METRICS_FILE)
            known = read_json(files[-1]) if files[-1].is_file() else {}
            write_json(files[-1], dict(sorted((known | dict(self.figures)).items())))
        return files


class Suite(Protocol):
    """A way to measure a model, a tokenizer or anything else that lies in a folder.

    Attributes:
        summary: one line for `emu evaluate --help`.
    """

    summary: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the suite's own options; `model`, `--suite` and `--output` are there already."""
        ...

    def prepare(self, request: argparse.Namespace) -> Any:
        """Load what `request.model` names and check all options, so that nothing is refused after hours of work.

        Raises:
            Unsuited: the suite is not for this model.
            FileNotFoundError, ValueError: what is asked for cannot be measured; the message says why and what to do.
        """
        ...

    def run(self, subject: Any, log: Log) -> Report:
        """Measure what `prepare` returned."""
        ...
