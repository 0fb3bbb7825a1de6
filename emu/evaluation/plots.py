"""Results as pictures; needs matplotlib (the extra "demo")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_suite(suite: str, found: Mapping[str, Any], file: Path) -> None:
    """Draw what a suite found: true against drawn odds, or accuracy against diversity.

    Draws nothing for suites of plain shares, nor for a model that draws too little right for any test of odds.
    """
    if suite == "calibration":
        tests = [test for test in found["tests"] if len(test["expected"]) <= 64]
        if tests:
            plot_odds(tests, file)
    elif suite == "shapes":
        plot_sweep(found["sweep"], file)


def plot_odds(tests: Sequence[Mapping[str, Any]], file: Path) -> None:
    """True odds of every value of an attribute against the odds among samples, one panel a test."""
    columns = min(4, len(tests))
    rows = -(-len(tests) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
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
    _save(figure, file)


def plot_sweep(points: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Accuracy against diversity, a point for each guidance scale."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    accuracy = [point["accuracy"]["value"] for point in points]
    diversity = [point["diversity"] for point in points]
    axes.plot(diversity, accuracy, "o-")
    for point, x, y in zip(points, diversity, accuracy, strict=True):
        axes.annotate(f"{point['guidance_scale']:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("diversity of places (entropy, share of 4 bits)")
    axes.set_ylabel("right pictures")
    axes.set_title("guidance scales")
    _save(figure, file)


def plot_curves(steps: np.ndarray, excess: Mapping[str, np.ndarray], floors: Mapping[str, float], file: Path) -> None:
    """Model bits of every task as training goes on, and the floor below which none can fall.

    Args:
        steps: (n,) training steps.
        excess: task -> (n,) bits above the floor.
        floors: task -> bits a document.
        file: picture to write.
    """
    columns = 4
    rows = -(-len(excess) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    for i, (name, values) in enumerate(excess.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(steps, values + floors[name], "o-", markersize=3)
        axes.axhline(floors[name], color="tab:red", linewidth=1, linestyle="--")
        axes.set_title(f"{name}: floor {floors[name]:.2f}", fontsize=8)
        axes.set_ylim(0, max(2.5 * floors[name], floors[name] + 4 * abs(values[-1]) + 0.5))
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.set_ylabel("bits a document", fontsize=7)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
