"""Results as pictures, the bytes of PNG files; needs matplotlib (the extra "demo")."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from emu.evaluation.variety import VarietyPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def odds_picture(tests: Sequence[Mapping[str, Any]]) -> bytes | None:
    """True odds of every value of an attribute against the odds among samples, one panel a test.

    None without tests (a model may draw too little right for any) or without matplotlib.
    """
    if not tests or find_spec("matplotlib") is None:
        return None
    columns = min(4, len(tests))
    rows = -(-len(tests) // columns)
    figure = _figure(3.2 * columns, 3.2 * rows)
    for i, test in enumerate(tests):
        axes = figure.add_subplot(rows, columns, i + 1)
        expected, observed = np.array(test["expected"]), np.array(test["observed"])
        error = 1.96 * np.sqrt(np.maximum(observed * (1 - observed), 1e-9) / test["test"]["count"])
        top = 1.1 * max(expected.max(), observed.max())
        axes.plot([0, top], [0, top], color="0.7", linewidth=1)
        axes.errorbar(expected, observed, error, fmt="o", markersize=3, linewidth=1)
        axes.set_title(
            f"{test['world']} {test['task']}\n{test['attribute']}, guidance {test['guidance_scale']:g}, p = {test['test']['p_value']:.2g}",
            fontsize=8,
        )
        axes.set_xlabel("true odds", fontsize=8)
        axes.set_ylabel("odds among samples", fontsize=8)
        axes.tick_params(labelsize=7)
    return _png(figure)


def variety_picture(points: Sequence[VarietyPoint], held_out: float | None = None) -> bytes | None:
    """Share of right pictures against bits left free, a point for each guidance scale; None without points or without matplotlib.

    Args:
        points: of one model.
        held_out: bits of real pictures, drawn as a line where no truth is known and it is not far away.
    """
    if not points or find_spec("matplotlib") is None:
        return None
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    bits, right = ([point.bits.value for point in points], [point.right.value for point in points])
    spread = [[getattr(point, name).interval for point in points] for name in ("bits", "right")]
    errors = [
        np.array([[max(0.0, one.value - one.low) for one in some], [max(0.0, one.high - one.value) for one in some]])
        for some in spread
    ]
    axes.errorbar(bits, right, yerr=errors[1], xerr=errors[0], fmt="o-", markersize=4, linewidth=1)
    for point, x, y in zip(points, bits, right, strict=True):
        axes.annotate(f"{point.guidance_scale:g}", (x, y), xytext=(5, -11), textcoords="offset points", fontsize=8)
    line = points[0].truth if points[0].truth is not None else held_out
    # Sampling at a low temperature leaves so little free that the line would push the points together.
    if line is not None and line < 2 * max(bits):
        axes.axvline(line, color="tab:red", linewidth=1, linestyle="--")
    axes.set_xlabel("bits of a picture that its prompt leaves free")
    axes.set_ylabel("right pictures")
    return _png(figure)


def curves_picture(steps: np.ndarray, excess: Mapping[str, np.ndarray], floors: Mapping[str, float]) -> bytes:
    """Model bits of every task as training goes on, and the floor below which none can fall.

    Args:
        steps: (n,) training steps.
        excess: task -> (n,) bits above the floor.
        floors: task -> bits a document.
    """
    columns = 4
    rows = -(-len(excess) // columns)
    figure = _figure(3 * columns, 2.4 * rows)
    for i, (name, values) in enumerate(excess.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(steps, values + floors[name], "o-", markersize=3)
        axes.axhline(floors[name], color="tab:red", linewidth=1, linestyle="--")
        axes.set_title(f"{name}: floor {floors[name]:.2f}", fontsize=8)
        axes.set_ylim(0, max(2.5 * floors[name], floors[name] + 4 * abs(values[-1]) + 0.5))
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.set_ylabel("bits a document", fontsize=7)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; matplotlib is loaded here, since measuring works without it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, dpi=110, format="png")
    return written.getvalue()
