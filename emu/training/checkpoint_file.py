"""The file of a training checkpoint: tensors as safetensors, everything else as JSON in its header, and one checksum over all of it.

    step=00000500.safetensors
        8 bytes    length of the header
        header     JSON: tensors by number, and under "__metadata__"
                     format      "emu training checkpoint 1"
                     content     the checkpoint, a JSON text in which {"$tensor": "3"} stands for tensor 3
                     sha256      of the whole file, with zeros in the place of these 64 digits
        tensors

No pickle: a checkpoint of others cannot run code. JSON knows neither tuples nor tables with keys that are not text; they are written as
{"$tuple": [...]} and {"$table": [[key, value], ...]}.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from emu_tokenizers.files import replacing

FORMAT = "emu training checkpoint 1"
SUFFIX = ".safetensors"
OLD_SUFFIX = ".ckpt"
NO_DIGEST = "0" * 64
BLOCK = 1 << 24
MAX_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""


class BadCheckpoint(ValueError):
    """A file is not a training checkpoint, or is not as it was written."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file.
        content: nested tables, lists and tuples of tensors, numbers, texts, truth values and None.

    Raises:
        TypeError: it holds something else; the message says where.
        OSError: the file cannot be written.
    """
    tensors = _Gathered()
    text = json.dumps(_encode(content, tensors, ""))
    metadata = {"format": FORMAT, "content": text, "sha256": NO_DIGEST}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
        place = _digest_place(_header(temporary))
        digest = _digest(temporary, place)
        with open(temporary, "r+b") as file:
            file.seek(place)
            file.write(digest.encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, after its checksum was compared.

    Args:
        path: a file that `write_checkpoint` wrote.

    Returns:
        What was written, its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        BadCheckpoint: it is not a checkpoint, or damaged.
    """
    content = read_content(path)
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}  # the file may go
    decoded = _decode(content, tensors)
    assert isinstance(decoded, dict)
    return decoded


def read_content(path: Path) -> dict[str, Any]:
    """Like `read_checkpoint`, but with {"$tensor": number} in the place of tensors, which stay in the file.

    Raises:
        FileNotFoundError, BadCheckpoint: as in `read_checkpoint`.
    """
    if path.suffix == OLD_SUFFIX and path.is_file():
        raise BadCheckpoint(
            f"{path} is a pickled checkpoint of an earlier version, which is not read any more; end that run with the version that began "
            "it, or start from its exported model with --model.pretrained"
        )
    header = _header(path)
    place = _digest_place(header)
    if place < 0:
        raise BadCheckpoint(f"{path} is not a checkpoint of a training run ({FORMAT!r} is missing in its header)")
    written = header[place - 8 : place - 8 + len(NO_DIGEST)].decode("ascii", "replace")
    if _digest(path, place) != written:
        raise BadCheckpoint(f"{path} is damaged: its checksum differs from the one that was written with it")
    content = json.loads(json.loads(header)["__metadata__"]["content"])
    assert isinstance(content, dict)
    return content


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file.

    Raises:
        BadCheckpoint: there is none.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        header = file.read(length) if length <= MAX_HEADER else b""
    if not header.startswith(b"{") or len(header) != length:
        raise BadCheckpoint(f"{path} is not a checkpoint, or damaged: it does not begin with a safetensors header")
    return header


def _digest_place(header: bytes) -> int:
    """Where the 64 digits of the checksum stand in the file, -1 where the header has no such entry."""
    key = b'"sha256":"'
    at = header.rfind(key) if FORMAT.encode() in header else -1
    return -1 if at < 0 else 8 + at + len(key)


def _digest(path: Path, place: int) -> str:
    digest, at, end = hashlib.sha256(), 0, place + len(NO_DIGEST)
    with open(path, "rb") as file:
        while block := bytearray(file.read(BLOCK)):
            first, last = max(place - at, 0), min(end - at, len(block))
            if first < last:
                block[first:last] = b"0" * (last - first)
            digest.update(block)
            at += len(block)
    return digest.hexdigest()


class _Gathered(dict[str, Tensor]):
    """Tensors by number, on the CPU, no two of which share memory: safetensors takes none that do, as tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: set[int] = set()

    def add(self, tensor: Tensor) -> str:
        """Add one; returns its number."""
        kept = tensor.detach().cpu().contiguous()
        if kept.untyped_storage().data_ptr() in self._memories:
            kept = kept.clone()
        self._memories.add(kept.untyped_storage().data_ptr())
        name = str(len(self))
        self[name] = kept
        return name


def _encode(value: Any, tensors: _Gathered, where: str) -> Any:
    if isinstance(value, Tensor):
        return {"$tensor": tensors.add(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(part, tensors, f"{where}.{key}") for key, part in value.items()}
        pairs = [
            [_encode(key, tensors, where), _encode(part, tensors, f"{where}.{key}")] for key, part in value.items()
        ]
        return {"$table": pairs}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(part, tensors, where) for part in value]}
    if isinstance(value, list):
        return [_encode(part, tensors, where) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain(value)
    raise TypeError(
        f"a checkpoint holds tensors, numbers and texts; {where.lstrip('.')} is a {type(value).__name__}; leave it out of what "
        "`state_dict` or `on_save_checkpoint` returns"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    # What derives from them, as numpy's float64 and enumerations do, is written as them.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_decode(part, tensors) for part in value["$tuple"])
    if "$table" in value:
        return {_decode(key, tensors): _decode(part, tensors) for key, part in value["$table"]}
    if "$float" in value:
        return float(value["$float"])
    return {key: _decode(part, tensors) for key, part in value.items()}
