"""Weights in a folder: what they are called, how large they are and where they lie, before any of them is read.

Only headers are read at first, so that a missing shard or a file cut short is found before minutes of loading. Pickled files can run code
when they are read, so they are refused unless the caller names them; a named one is still read with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Names of dtypes in safetensors headers."""


class Entry(NamedTuple):
    """A tensor of a checkpoint."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of a folder, read when asked for.

    Attributes:
        folder: where they lie.
        entries: name -> file, dtype and shape.
        pickled: whether the weights come from a pickled file that the caller named.
    """

    folder: Path
    entries: Mapping[str, Entry]
    pickled: bool = False

    @classmethod
    def open(cls, folder: str | Path, allow_pickle: str | Iterable[str] = ()) -> Checkpoint:
        """Read the headers of a folder's weights.

        Args:
            folder: with `model.safetensors`, or shards and their index.
            allow_pickle: names of pickled files that may be read where there are no safetensors.

        Raises:
            FileNotFoundError: there are no weights, or a shard of the index is missing.
            ValueError: a file is cut short or broken, a shard lacks a tensor that the index promises, or the weights are pickled and
                not allowed.
        """
        folder = Path(folder)
        index = folder / INDEX
        if index.is_file():
            return cls(folder, _sharded(folder, index))
        if (folder / WEIGHTS).is_file():
            return cls(folder, read_header(folder / WEIGHTS))
        return cls(folder, _pickled(folder, allow_pickle), pickled=True)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, file by file; one tensor is in memory at a time."""
        wanted = list(self.entries if names is None else names)
        for file in dict.fromkeys(self.entries[name].file for name in wanted):
            inside = [name for name in wanted if self.entries[name].file == file]
            if self.pickled:
                state = load_pickle(file)
                yield from ((name, state[name]) for name in inside)
                continue
            with safe_open(file, framework="pt") as opened:
                for name in inside:
                    yield name, opened.get_tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor by its name."""
        return next(iter(self.tensors([name])))[1]

    def rows(self, name: str, first: int, end: int) -> Tensor:
        """The rows `first` to `end` of one tensor; of a safetensors file no others are read."""
        if self.pickled:
            return self.tensor(name)[first:end]
        return rows_of_file(self.entries[name].file, name, first, end)


def rows_of_file(file: Path, name: str, first: int, end: int) -> Tensor:
    """Rows of a tensor in a safetensors file, of which nothing else is read."""
    with safe_open(file, framework="pt") as opened:
        found: Tensor = opened.get_slice(name)[first:end]
    return found


def read_header(file: Path) -> dict[str, Entry]:
    """What a safetensors file holds, from its header.

    Raises:
        ValueError: the file is not a safetensors file, or is shorter or longer than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if 8 + length <= size else b""
    try:
        table: dict[str, Any] = json.loads(header)
        table.pop("__metadata__", None)
        entries = {name: Entry(file, DTYPES[tensor["dtype"]], tuple(tensor["shape"])) for name, tensor in table.items()}
        end = max((tensor["data_offsets"][1] for tensor in table.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} ({size} bytes) has no readable safetensors header; it is cut short or of another format. Copy it again"
        ) from error
    if size != 8 + length + end:
        raise ValueError(
            f"{file} has {size} bytes, its header promises {8 + length + end}; the copy is incomplete. Copy it again"
        )
    return entries


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{index} is not an index of shards; expected JSON with a 'weight_map'. Copy it again"
        ) from error
    shards = sorted(set(places.values()))
    outside = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
    if outside:
        raise ValueError(f"{index} points to {outside[0]!r}; expected names of .safetensors files beside it")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(shards)} shards that {INDEX} names: {', '.join(missing[:4])}. "
            "Download the missing files again"
        )
    headers = {shard: read_header(folder / shard) for shard in shards}
    for name, shard in places.items():
        if name not in headers[shard]:
            raise ValueError(f"{folder / shard} lacks the tensor {name!r} that {INDEX} promises. Copy both again")
    return {name: headers[shard][name] for name, shard in places.items()}


def _pickled(folder: Path, allow_pickle: str | Iterable[str]) -> dict[str, Entry]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one with config.json and {WEIGHTS}")
    allowed = {allow_pickle} if isinstance(allow_pickle, str) else set(allow_pickle)
    found = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if not found:
        cached = folder.parent.name == "snapshots"
        hint = (
            ". Pickled files of a repository are fetched only by name, e.g. allow_pickle='model.ckpt'" if cached else ""
        )
        raise FileNotFoundError(f"{folder} holds no weights; expected {WEIGHTS}, or shards with {INDEX}{hint}")
    refused = [file.name for file in found if file.name not in allowed]
    if refused:
        raise ValueError(
            f"{folder} holds pickled weights ({', '.join(refused)}) and no safetensors; reading a pickle can run code. "
            f"Use a folder with safetensors, or allow these files by name: allow_pickle={refused!r}"
        )
    return {
        name: Entry(file, tensor.dtype, tuple(tensor.shape))
        for file in found
        for name, tensor in load_pickle(file).items()
    }


def load_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, bare or under "state_dict"; nothing but tensors is unpickled."""
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    state = state.get("state_dict", state)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def num_bytes(entry: Entry, dtype: torch.dtype | None = None) -> int:
    """Bytes of a tensor, in its own dtype or, where it is floating point, in another."""
    kind = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
    return math.prod(entry.shape) * kind.itemsize
