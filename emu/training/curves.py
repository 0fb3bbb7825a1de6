"""Training curves as one CSV table, and as a picture where matplotlib is installed."""

from __future__ import annotations

import csv
import io
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from emu_tokenizers.files import replacing, write_file

SECONDS_BETWEEN_WRITES = 10.0
FEW_POINTS = 20
"""A curve of fewer points shows them: one alone draws no line."""
PICTURES = {"loss.png": ["loss"], "codebook.png": ["codebook_use", "codebook_perplexity", "codebook_dead", "psnr"]}
"""What is drawn of a run: a panel for each word, of the quantities that have it in their names."""


class CurveLogger(Logger):
    """A row a logged step, a column a quantity: `metrics.csv`, and some of them as pictures.

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
            for file, words in PICTURES.items():
                plot_panels(self._rows, words, self._folder / file)


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


def plot_panels(rows: Mapping[int, Mapping[str, float]], words: Sequence[str], path: Path) -> None:
    """Draw every quantity over the steps as PNG, a panel for each word of all whose names have it; no file where none has."""
    known = sorted({name for row in rows.values() for name in row})
    steps = sorted(rows)
    panels = {
        word.replace("_", " "): {name: [(s, rows[s][name]) for s in steps if name in rows[s]] for name in names}
        for word in words
        if (names := [name for name in known if word in name])
    }
    if panels:
        write_file(path, draw_curves(panels))


def draw_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], labels: Mapping[str, str] | None = None
) -> bytes:
    """Curves over steps as PNG.

    Args:
        panels: title -> name of a curve -> its (step, value) points.
        labels: title -> label of the vertical axis; none by default.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in lines.items():
            if points:
                marker = "." if len(points) < FEW_POINTS else ""
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4, marker=marker)
        axes.set(title=title, xlabel="step", ylabel=(labels or {}).get(title, ""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()
