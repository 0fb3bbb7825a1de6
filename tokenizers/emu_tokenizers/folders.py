"""Where the folder of a tokenizer is: names that stand for folders, and tokenizers inside the folder of a model."""

from __future__ import annotations

import os
from pathlib import Path

TEXT_FOLDER, VISION_FOLDER = "text_tokenizer", "vision_tokenizer"
"""Names of the tokenizers' folders in that of a model."""

_named: dict[str, Path] = {}


def name_folders(folder: Path) -> None:
    """Let the names of the folders in `folder` stand for them, as "digits" does for the bundled model."""
    if folder.is_dir():
        _named.update({inside.name: inside for inside in sorted(folder.iterdir()) if inside.is_dir()})


def named_folders() -> dict[str, Path]:
    """Folders by the names that stand for them."""
    return dict(_named)


def find_part(source: str | os.PathLike, part: str) -> str | os.PathLike:
    """The folder `part` of a model where `source` is a model's folder or a name that stands for one; otherwise `source` as it is."""
    folder = _named.get(str(source), Path(source))
    return folder / part if (folder / part).is_dir() else source
