"""The curve of every task's bits against its floor, from the `metrics.csv` of a run of the shapes recipe.

python benchmarks/worlds_curves.py runs/shapes docs/results/worlds_curves.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from emu.evaluation.plots import curves_picture
from emu.worlds import standard_worlds
from emu_tokenizers.files import write_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    options = parser.parse_args()
    with open(options.run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if any(row[name] for name in row if name.startswith("excess/"))]
    if not rows:
        raise SystemExit(
            f"{options.run}/metrics.csv holds no scores; train with the callback emu.evaluation.excess_curves.ExcessCurves"
        )
    names = [name for name in rows[0] if name.startswith("excess/")]
    excess = {name.removeprefix("excess/"): np.array([float(row[name]) for row in rows]) for name in names}
    floors = {}
    for name in excess:
        world, task = name.split("/")
        floors[name] = standard_worlds()[world].floor(task)
    steps = np.array([int(row["step"]) for row in rows])
    write_file(options.picture, curves_picture(steps, excess, floors))
    print(f"{'task':24} {'floor':>7} " + " ".join(f"{row['step']:>7}" for row in rows))
    for name, values in excess.items():
        print(f"{name:24} {floors[name]:7.3f} " + " ".join(f"{value:7.3f}" for value in values))


if __name__ == "__main__":
    main()
