"""The figures of a suite as one flat table, gathered over suites in `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.worlds import HELD_OUT
from emu_tokenizers.files import read_json, write_json

METRICS_FILE = "metrics.json"


def summary(found: Mapping[str, Any]) -> dict[str, float]:
    """What a suite found, name -> figure.

    Names of calibration are "excess/<world>/<task>" in bits a document, "share/..." of the floor, both with "/combinations" behind them for
    held-out combinations, and "p/<world>/<task>/<attribute>/<guidance scale>"; those of skills are "skill/<name>", "iou/<world>".
    """
    figures: dict[str, float] = {}
    for score in found.get("scores", ()):
        name = f"{score['world']}/{score['task']}" + ("" if score["split"] == HELD_OUT else "/combinations")
        figures[f"excess/{name}"] = round(score["excess"]["value"], 4)
        if score["relative"] is not None:
            figures[f"share/{name}"] = round(score["relative"], 4)
    for test in found.get("tests", ()):
        name = f"{test['world']}/{test['task']}/{test['attribute']}/{test['guidance_scale']:g}"
        figures[f"p/{name}"] = test["test"]["p_value"]
    figures |= {f"skill/{name}": round(share["value"], 4) for name, share in found.get("skills", {}).items()}
    return figures | {f"iou/{name}": round(share["value"], 4) for name, share in found.get("iou", {}).items()}


def add_to_metrics(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the figures into `metrics.json`; those of other suites stay."""
    file = folder / METRICS_FILE
    known = read_json(file) if file.is_file() else {}
    write_json(file, dict(sorted((known | summary(found)).items())))
