"""Samples in tar files, as WebDataset has them: 000001-seed5-0a1b2c3d.png and 000001-seed5-0a1b2c3d.json of one name are a sample.

The bytes of a file depend on its samples alone: members have no owner, no time, and one mode.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu.provenance import read_provenance
from emu_tokenizers.files import replacing

CARRIED = ("id", "label", "request")
"""What a sample's JSON repeats of its record in the manifest."""


def tar_name(number: int, digests: Sequence[str]) -> str:
    """Name of a tar file: its number, and 8 digits that tell its samples from others of that number."""
    return f"{number:06d}-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}.tar"


def write_samples(path: Path, samples: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Write a tar file of samples, which appears when it is complete.

    Args:
        path: of the tar file.
        samples: the picture or clip of each, as a file that says how it was made, and its record in the manifest.
    """
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for file, record in samples:
            _add(tar, file.name, file.read_bytes())
            _add(tar, f"{file.stem}.json", sample_json(file, record))


def sample_json(file: Path, record: Mapping[str, Any]) -> bytes:
    """What a sample says of itself: prompt, seed, model and settings, and what its line says of it."""
    about = {**read_provenance(file), **{name: record[name] for name in CARRIED if name in record}}
    return json.dumps(about).encode()


def names_in(path: Path) -> list[str]:
    """Names of the members of a tar file, in order."""
    with tarfile.open(path, "r:") as tar:
        return tar.getnames()


def extract(path: Path, name: str, folder: Path) -> Path:
    """Write a member of a tar file into a folder; returns the file.

    Raises:
        KeyError: there is no member of this name.
    """
    with tarfile.open(path, "r:") as tar:
        member = tar.extractfile(name)
        assert member is not None, f"{name} in {path} is no file"
        target = folder / name
        target.write_bytes(member.read())
    return target


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
