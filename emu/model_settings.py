"""`emu.json`, what a model's folder tells about itself: generation defaults, what it was trained with and for, and its files.

    {"format_version": 2,
     "generation": {"size": [32, 32], ...},            settings where a call says nothing; those left out are the library's
     "fingerprints": {"vocabulary": "cce0...", ...},   of the tokenizers that the transformer was trained with
     "trained": {"tasks": [...], ...} or null,         see `emu.trained.Trained`; null where nobody knows
     "files": {"config.json": {"bytes": 1089, "sha256": "..."}, ...}}   of the whole folder, this file apart

Version 1 has neither `trained` nor `files`; it is read and never written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from emu.trained import UNKNOWN, Trained
from emu_tokenizers.files import PARTIAL, read_json, write_json

SETTINGS_FILE = "emu.json"
FORMAT_VERSION = 2
KEYS = {
    1: {"format_version", "generation", "fingerprints"},
    2: {"format_version", "generation", "fingerprints", "trained", "files"},
}
NOT_RECORDED = (PARTIAL, ".md")
"""Endings of files that nobody reads a model from: unfinished ones, and cards, which hubs rewrite."""
CHUNK = 1 << 20
"""Bytes that are hashed at a time."""


@dataclass(frozen=True)
class FileRecord:
    """What a file was when its folder was written: its length in bytes, and its sha256 as hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelSettings:
    """The content of `emu.json`.

    Attributes:
        generation: settings by the names of `GenerationDefaults`.
        fingerprints: of the vocabulary and the tokenizers, by name.
        trained: what the model was trained for.
        files: the folder's files by their path in it; empty where they were not recorded.
    """

    generation: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    trained: Trained = UNKNOWN
    files: Mapping[str, FileRecord] = field(default_factory=dict)


def write_settings(
    folder: Path, generation: Mapping[str, Any], fingerprints: Mapping[str, str], trained: Trained = UNKNOWN
) -> None:
    """Write `emu.json` into a folder that is complete but for it: all other files in it are recorded."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    table = {
        "format_version": FORMAT_VERSION,
        "generation": dict(generation),
        "fingerprints": dict(fingerprints),
        "trained": None if trained == UNKNOWN else trained.to_dict(),
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for name, path in files.items()
            if name != SETTINGS_FILE and not name.endswith(NOT_RECORDED)
        },
    }
    write_json(folder / SETTINGS_FILE, table)


def read_settings(folder: Path) -> ModelSettings | None:
    """What `write_settings` wrote, or None where a folder has no such file.

    Raises:
        ValueError: the file is not JSON of this form, or of a later version; the message names it.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return None
    table = read_json(file)
    version = table.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version}, this library reads up to {FORMAT_VERSION}; update it")
    expected = KEYS.get(version, KEYS[FORMAT_VERSION]) if isinstance(version, int) else KEYS[FORMAT_VERSION]
    if set(table) != expected:
        raise ValueError(f"{file} should hold {sorted(expected)}; save the model again")
    try:
        trained = table.get("trained")
        return ModelSettings(
            _table(table, "generation"),
            _table(table, "fingerprints"),
            UNKNOWN if trained is None else Trained.from_dict(trained),
            {name: _record(name, entry) for name, entry in _table(table, "files").items()},
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def check_files(folder: Path, settings: ModelSettings, *, verify: bool = False) -> None:
    """Compare a folder with what was written: the length of each file, and with `verify` its content.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file has another length or content; the message names it.
    """
    if verify and not settings.files:
        raise ValueError(
            f"{folder / SETTINGS_FILE} lists no files to verify; save the model again with this version of the library"
        )
    for name, record in settings.files.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, {SETTINGS_FILE} lists it; restore it, or save the model again")
        found = file.stat().st_size
        if found != record.bytes:
            raise ValueError(f"{file} has {found} bytes, {SETTINGS_FILE} lists {record.bytes}; {_REMEDY}")
        if verify and file_sha256(file) != record.sha256:
            raise ValueError(f"{file} has another content (sha256) than {SETTINGS_FILE} lists; {_REMEDY}")


_REMEDY = (
    "it is damaged or was changed: restore it or save the model again "
    f"(for a change by hand, take its entry out of `files` in {SETTINGS_FILE})"
)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name, {})
    if not isinstance(found, dict):
        raise TypeError(f"{name} is {type(found).__name__}; expected a table")
    return found


def _record(name: str, entry: Any) -> FileRecord:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"files holds {name!r}; expected paths inside the folder")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"} or not isinstance(entry["bytes"], int):
        raise TypeError(f"files holds {entry!r} for {name!r}; expected bytes and sha256")
    return FileRecord(entry["bytes"], str(entry["sha256"]))
