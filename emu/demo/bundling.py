"""Trained models that travel with the package: weights in float16, a limit to their size, figures measured on what is bundled."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emu.pipeline import Emu
from emu_tokenizers.files import write_json

METRICS = "metrics.json"


def write_bundled(model: Path, folder: Path, most_bytes: int, finish: Callable[[Path, Emu], Mapping[str, Any]]) -> int:
    """Write the bundled form of a trained model, beside which its figures lie.

    Args:
        model: folder of the trained model.
        folder: of the bundled one, replaced as a whole.
        most_bytes: that it may take.
        finish: adds what belongs into the rounded model's folder, measures it and returns the figures.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the bundled model would be larger.
    """
    emu = Emu.from_pretrained(model, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        rounded = Path(name) / folder.name
        emu.model.to(torch.float16)  # type: ignore[arg-type]
        emu.save_pretrained(rounded)
        size = sum(file.stat().st_size for file in rounded.rglob("*") if file.is_file())
        if size > most_bytes:
            raise ValueError(f"the model takes {size:,} bytes; expected {most_bytes:,} at most, train a smaller one")
        write_json(rounded / METRICS, finish(rounded, emu))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(rounded, folder)
    return size


def bundle_command(
    arguments: Sequence[str], prog: str, about: str | None, made_by: str, bundle: Callable[[Path], int], folder: Path
) -> int:
    """The command that bundles a run.

    Args:
        arguments: of the command line.
        prog, about: its name and its description.
        made_by: the command that wrote the run.
        bundle: bundles a run's folder and returns the size in bytes.
        folder: of the bundled model.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("run", type=Path, help=f"folder that {made_by} wrote")
    options = parser.parse_args(arguments)
    print(f"{bundle(options.run):,} bytes in {folder}")
    return 0
