"""Objects by class path, found first in the folder that one works in."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

MOVED = {
    "emu.demo.worlds.ExcessCurves": "emu.evaluation.excess_curves.ExcessCurves",
    "emu.demo.worlds.WorldsData": "emu.worlds.training_data.WorldsData",
    "emu_tokenizers.drawings.ShapesData": "emu_tokenizers.training.ShapesData",
    "emu_tokenizers.pictures.PictureData": "emu_tokenizers.training.PictureData",
}
"""Class path that a config.yaml of an earlier version may hold -> the object's path today."""


def import_object(class_path: str) -> Any:
    """The object that a dotted path such as "my_module.MyData" names.

    Modules of the working folder come first, whatever way Python was started: the command `emu` does not search it otherwise.

    Raises:
        ValueError: the path is not dotted, the module cannot be imported, or it has no such object; the message says which
            and why, and where an object of an earlier version is now.
    """
    module_name, dot, name = class_path.rpartition(".")
    if not dot or not module_name or not name:
        raise ValueError(f"class path {class_path!r} is not dotted; expected module.Name, e.g. my_module.MyData")
    if class_path in MOVED:
        raise ValueError(f"class path {class_path!r} is of an earlier version; write {MOVED[class_path]}")
    search_working_folder()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"class path {class_path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            f"searched {Path.cwd()} first"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"class path {class_path!r}: {module_name} ({module.__file__}) has no {name!r}")
    return getattr(module, name)


def search_working_folder() -> None:
    """Let imports look into the working folder first."""
    here = str(Path.cwd())
    if sys.path[:1] not in ([here], [""]):
        sys.path.insert(0, here)
