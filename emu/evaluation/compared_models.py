"""Several models measured with several suites: what each gave, which suites were left out and why, and differences item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.evaluation.statistics import Interval
from emu.evaluation.suites.base import Log, Report, Suite, Unsuited
from emu_tokenizers.files import write_json

TABLE_FILE = "evaluation.json"


@dataclass
class Comparison:
    """What was found.

    Attributes:
        models: as the user named them, in order; differences are to the first.
        suites: names in order, with what each measures.
        reports: by (model, suite).
        left_out: why a suite gave nothing for a model, by (model, suite).
        failed: those of them that broke while they ran.
    """

    models: Sequence[str]
    suites: Mapping[str, str]
    reports: dict[tuple[str, str], Report] = field(default_factory=dict)
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)

    @property
    def exit_code(self) -> int:
        """1 where a suite failed or found something wrong, else 0."""
        return max([int(bool(self.failed)), *(report.exit_code for report in self.reports.values())])

    def figures(self, suite: str) -> list[str]:
        """Names of a suite's figures, in order of first appearance."""
        named = [
            name
            for model in self.models
            if (model, suite) in self.reports
            for name in self._report(model, suite).figures
        ]
        return list(dict.fromkeys(named))

    def _report(self, model: str, suite: str) -> Report:
        return self.reports[model, suite]

    def value(self, model: str, suite: str, figure: str) -> float | None:
        """A figure of a model; None where it has none."""
        report = self.reports.get((model, suite))
        return None if report is None else report.figures.get(figure)

    def interval(self, model: str, suite: str, figure: str) -> Interval | None:
        """Its interval, where one is known."""
        report = self.reports.get((model, suite))
        measure = None if report is None else report.measures.get(figure)
        return None if measure is None else measure.interval

    def difference(self, model: str, suite: str, figure: str) -> Interval | None:
        """The mean difference of a model's items to the first model's; None where they are not the same items."""
        first, other = self.reports.get((self.models[0], suite)), self.reports.get((model, suite))
        if model == self.models[0] or first is None or other is None:
            return None
        ours, theirs = other.measures.get(figure), first.measures.get(figure)
        return None if ours is None or theirs is None else ours.minus(theirs)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures, as JSON types."""
        return {
            "models": list(self.models),
            "suites": {
                suite: {
                    "summary": summary,
                    "figures": {name: self._row(suite, name) for name in self.figures(suite)},
                    "left_out": {
                        model: self.left_out[model, suite] for model in self.models if (model, suite) in self.left_out
                    },
                }
                for suite, summary in self.suites.items()
            },
        }

    def _row(self, suite: str, figure: str) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for model in self.models:
            value = self.value(model, suite, figure)
            if value is None:
                continue
            found: dict[str, Any] = {"value": value}
            for name, interval in (
                ("interval", self.interval(model, suite, figure)),
                ("difference", self.difference(model, suite, figure)),
            ):
                if interval is not None:
                    found[name] = (
                        [interval.low, interval.high]
                        if name == "interval"
                        else [interval.value, interval.low, interval.high]
                    )
            row[model] = found
        return row

    def write(self, folder: Path) -> Path:
        """Write `evaluation.json`."""
        write_json(folder / TABLE_FILE, self.to_dict())
        return folder / TABLE_FILE


Prepare = Callable[[str, str], Any]
"""(model, suite) -> what the suite measures."""


def compare(
    models: Sequence[str],
    suites: Mapping[str, Suite],
    prepare: Prepare,
    log: Log,
    finished: Callable[[str, str, Report], None],
) -> Comparison:
    """Measure models with suites.

    Everything is prepared once before the first suite runs, so that nothing is refused after hours of work, and once more when its turn
    comes, so that one model at a time is held.

    Args:
        models: names.
        suites: by name.
        prepare: loads what a suite measures.
        log: takes lines.
        finished: is told of each report as soon as it is there.

    Raises:
        FileNotFoundError, ValueError: a model cannot be read, options are wrong, or no suite is for any of the models.
    """
    found = Comparison(models, {name: suite.summary for name, suite in suites.items()})
    for model in models:
        for name in suites:
            try:
                prepare(model, name)
            except Unsuited as reason:
                found.left_out[model, name] = str(reason)
    if len(found.left_out) == len(models) * len(suites):
        told = "".join(f"\n  - {model}, {name}: {reason}" for (model, name), reason in found.left_out.items())
        raise ValueError(f"none of the suites is for any of the models:{told}")
    for model in models:
        for name, suite in suites.items():
            if (model, name) in found.left_out:
                log(f"{model}, {name}: left out: {found.left_out[model, name]}")
                continue
            log(f"{model}, {name}:")
            try:
                report = suite.run(prepare(model, name), lambda line: log(f"  {line}"))
            except (ValueError, FloatingPointError) as error:
                # One model whose logits are not numbers takes nothing from the others.
                found.left_out[model, name] = f"failed: {error}"
                found.failed.add((model, name))
                log(f"  {found.left_out[model, name]}")
                continue
            found.reports[model, name] = report
            finished(model, name, report)
    return found
