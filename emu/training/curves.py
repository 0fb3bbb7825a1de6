"""Training curves as one CSV table, and as a picture where matplotlib is installed."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from emu.training.checkpoints import replacing

SECONDS_BETWEEN_WRITES = 10.0


class CurveLogger(Logger):
    """A row a logged step, a column a quantity: `metrics.csv`, and `loss.png` of the columns whose name has "loss" in it.

    Args:
        folder: where the two files go.
        resume: keep the rows of an earlier part of this run that come before the first step logged now.
    """

    def __init__(self, folder: str, resume: bool = False) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._resume = resume
        self._rows: dict[int, dict[str, float]] = {}
        self._written = 0.0

    @property
    def name(self) -> str:
        """No subfolder."""
        return ""

    @property
    def version(self) -> str:
        """No subfolder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def table(self) -> Path:
        """Path of the CSV file."""
        return self._folder / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is saved beside the curves, not in them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        step = step or 0
        if self._resume:
            self._rows = {kept: row for kept, row in read_curves(self.table).items() if kept < step}
            self._resume = False
        self._rows.setdefault(step, {}).update(
            {name: float(value) for name, value in metrics.items() if name != "epoch"}
        )
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the table."""
        if not self._rows:
            return
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        with replacing(self.table) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        self._written = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the table and the picture."""
        self.save()
        if self._rows and find_spec("matplotlib") is not None:
            plot_losses(self._rows, self._folder / "loss.png")


def read_curves(table: Path) -> dict[int, dict[str, float]]:
    """The rows of a `metrics.csv` by step; empty where there is no such file."""
    if not table.is_file():
        return {}
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): {name: float(value) for name, value in row.items() if name != "step" and value}
        for row in rows
    }


def plot_losses(rows: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Draw every quantity whose name has "loss" in it over the steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({name for row in rows.values() for name in row if "loss" in name})
    if not names:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in names:
        points = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2.0 if name == "loss" else 1.0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
