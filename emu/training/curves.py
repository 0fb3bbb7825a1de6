"""Training curves as one CSV table, as a page that is read while a run trains, and as a picture where matplotlib is installed."""

from __future__ import annotations

import csv
import io
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from emu.training.run_page import write_page
from emu_tokenizers.files import replacing, write_file

SECONDS_BETWEEN_WRITES = 10.0
FEW_POINTS = 20
"""A curve of fewer points shows them: one alone draws no line."""
PICTURES = {
    "loss.png": {
        "loss": ("train/loss", "val/loss"),
        "loss by source": ("train/source_loss", "val/source_loss"),
    },
    "codebook.png": {
        "codebook use": ("train/codebook_use", "val/codebook_use"),
        "codebook perplexity": ("train/codebook_perplexity", "val/codebook_perplexity"),
        "codebook dead": ("train/codebook_dead", "val/codebook_dead"),
        "psnr": ("val/image/psnr", "val/video/psnr"),
    },
}
"""What is drawn of a run: file -> title of a panel -> the quantities in it, each with all those that its name and a slash begin."""


class CurveLogger(Logger):
    """A row a logged step, a column a quantity: `metrics.csv`, all of them on `run.html`, and some as pictures.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)
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
        numbers = {name: number for name, value in metrics.items() if (number := as_number(value)) is not None}
        numbers.pop("epoch", None)
        if not numbers:
            return
        self._rows.setdefault(step or 0, {}).update(numbers)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    @rank_zero_only
    def go_on_after(self, step: int) -> None:
        """Keep the rows that an earlier part of this run wrote up to a step, from which it goes on.

        Raises:
            ValueError: the table cannot be read.
        """
        self._rows = {kept: row for kept, row in read_curves(self.table).items() if kept <= step}

    @rank_zero_only
    def save(self) -> None:
        """Write the table and the page."""
        self._save("")

    def _save(self, status: str) -> None:
        if not self._rows:
            return
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        with replacing(self.table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        write_page(self._folder, self._rows, status)
        self._written = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the table, page and pictures; after a failure as far as the disk takes them, since what ended the run is reported then."""
        with suppress(OSError) if status == "failed" else nullcontext():
            self._save(status)
            if self._rows and find_spec("matplotlib") is not None:
                for file, panels in PICTURES.items():
                    plot_panels(self._rows, panels, self._folder / file)


def as_number(value: Any) -> float | None:
    """A number or a tensor of one; None for whatever else other loggers may take."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def read_curves(table: Path) -> dict[int, dict[str, float]]:
    """The rows of a `metrics.csv` by step; empty where there is no such file.

    Raises:
        ValueError: it is not such a table; the message names the file and the line.
    """
    if not table.is_file():
        return {}
    rows: dict[int, dict[str, float]] = {}
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                rows[int(row["step"])] = {name: float(value) for name, value in row.items() if name != "step" and value}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{table}, line {reader.line_num}: not a table of curves ({error}); move it away to go on without the earlier rows"
            ) from error
    return rows


def plot_panels(rows: Mapping[int, Mapping[str, float]], panels: Mapping[str, Sequence[str]], path: Path) -> None:
    """Draw quantities over the steps as PNG; no file where there are none.

    Args:
        rows: values by step and name.
        panels: see `PICTURES`; one without values is left out.
        path: of the file.
    """
    known, steps = sorted({name for row in rows.values() for name in row}), sorted(rows)
    drawn = {
        title: {name: [(step, rows[step][name]) for step in steps if name in rows[step]] for name in names}
        for title, begins in panels.items()
        if (names := [name for name in known if any(f"{name}/".startswith(f"{begin}/") for begin in begins)])
    }
    if drawn:
        write_file(path, draw_curves(drawn))


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
