"""The folder of a model, by whatever it may be called: a bundled name, a folder, a hub's repository."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emu.checkpoints.repositories import resolve
from emu_tokenizers.folders import name_folders, named_folders

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Models that travel with the package; tokenizers of `emu_tokenizers` know their names too."""

name_folders(BUNDLED)


def bundled_models() -> list[str]:
    """Names of the bundled models."""
    return sorted(named_folders())


def is_bundled(path: str | Path) -> bool:
    """Whether a path is the bare name of a bundled model."""
    return str(path) in named_folders()


def find_model_folder(path: str | Path, *, files: Iterable[str] = (), **places: Any) -> Path:
    """The folder that a path means: that of the bundled model of this name, or else itself, or else what a hub's repository holds.

    Args:
        path: "digits" for the bundled model (and "./digits" for one's own folder), a folder, owner/name, or owner/name@revision.
        files, places: see `emu.checkpoints.repositories.resolve`.

    Returns:
        A folder; it may not exist where the path is neither a bundled name nor of the form of a repository.

    Raises:
        FileNotFoundError, ValueError: the repository could not be read; see `resolve`.
    """
    if not is_bundled(path):
        return resolve(path, files=files, **places)
    if Path(path).is_dir():
        warnings.warn(
            f"{str(path)!r} is the bundled model; write {f'./{path}'!r} for the folder of that name", stacklevel=2
        )
    return named_folders()[str(path)]
