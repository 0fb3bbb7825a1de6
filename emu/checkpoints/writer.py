"""Writing weights tensor by tensor into safetensors files of a limited size."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from emu.checkpoints.weights import INDEX, WEIGHTS
from emu_tokenizers.files import write_json

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
SHARD = "model-{:05d}-of-{:05d}.safetensors"


def parse_size(size: str | int) -> int:
    """Bytes of "5GB", "200MB", "40KB" or a number.

    Raises:
        ValueError: something else.
    """
    text = str(size).strip().upper()
    unit = UNITS.get(text[-2:], 0) if not text.isdecimal() else 1
    number = text if text.isdecimal() else text[:-2].strip()
    if not unit or not number.isdecimal() or not int(number):
        raise ValueError(f'the size of a shard is {size!r}; expected a number of bytes or e.g. "5GB", "200MB"')
    return int(number) * unit


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would make it too large; one file is in memory at a time.

    Args:
        folder: to write to; must exist.
        max_bytes: most bytes of a file; a single larger tensor gets a file of its own.
        dtype: of floating point tensors; None keeps theirs.
    """

    def __init__(self, folder: Path, max_bytes: int = 5 * 10**9, dtype: torch.dtype | None = None) -> None:
        self._folder, self._max_bytes, self._dtype = folder, max_bytes, dtype
        self._open: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor, keep_dtype: bool = False) -> None:
        """Write a tensor, in its own dtype where asked.

        Raises:
            ValueError: the name was written before.
        """
        if name in self._open or any(name in names for names in self._written):
            raise ValueError(f"two tensors are called {name!r}; the source holds one of them twice")
        if self._dtype is not None and not keep_dtype and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        size = tensor.numel() * tensor.element_size()
        if self._open and self._bytes + size > self._max_bytes:
            self._flush()
        self._open[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Write what is left, give the files their names, and the index where there are several."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._place(0).rename(self._folder / WEIGHTS)
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._written):
            shard = SHARD.format(number + 1, count)
            self._place(number).rename(self._folder / shard)
            places |= dict.fromkeys(names, shard)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        write_json(self._folder / INDEX, index)

    def _flush(self) -> None:
        save_file(self._open, self._place(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._open))
        self._open, self._bytes = {}, 0

    def _place(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.partial"
