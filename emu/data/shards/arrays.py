"""Arrays of a shard: mapped into memory, and checked the first time that a process reads from a block."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from emu.data.shards.checksums import BLOCK_BYTES, DamagedShards, digest

HEADER_BYTES = 128
"""What `numpy.save` puts before the values of the arrays that we write."""


def array_path(folder: Path, number: int, name: str) -> Path:
    """The file of an array of a shard."""
    return folder / f"shard-{number:05d}.{name}.npy"


def marker_path(folder: Path, number: int) -> Path:
    """The JSON file of a shard."""
    return folder / f"shard-{number:05d}.json"


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a NumPy file."""
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    data = written.getvalue()
    assert len(data) == HEADER_BYTES + array.nbytes, "numpy.save wrote a header of another length"
    return data


class StoredArray:
    """The values of an array's file, each block of which is checked before the first of its values is given out.

    Args:
        path: of the file.
        dtype: of the values.
        shape: of the values.
        blocks: digest of each block of the file.
        block_bytes: length of a block.
        digest: the function that made the digests.
        limit: what every value is below; None where any value may stand.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedShards: the file has another length.
    """

    def __init__(
        self,
        path: Path,
        dtype: np.dtype,
        shape: tuple[int, ...],
        blocks: Sequence[str],
        *,
        block_bytes: int = BLOCK_BYTES,
        digest: Callable[[memoryview], str] = digest,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self._blocks, self._block_bytes, self._digest, self._limit = blocks, block_bytes, digest, limit
        size = HEADER_BYTES + int(np.prod(shape)) * dtype.itemsize
        check_size(path, size)
        if len(blocks) != -(-size // block_bytes):
            raise DamagedShards(path, f"{len(blocks)} checksums for {size} bytes")
        # torch closes the file once it is mapped: any number of shards can be open, while numpy keeps a handle for each array.
        self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
        self._bytes.flags.writeable = False
        self.values = self._bytes[HEADER_BYTES:].view(dtype).reshape(shape)
        """The values, unchecked."""
        self._row_bytes = self.values[:1].nbytes or dtype.itemsize
        self._unchecked = set(range(len(blocks)))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values start .. stop - 1 of the first axis, checked.

        Raises:
            DamagedShards: the file does not hold what was written.
        """
        if self._unchecked:
            self._check(start, stop)
        return self.values[start:stop]

    def check(self) -> np.ndarray:
        """All values, checked; errors as in `read`."""
        for block in sorted(self._unchecked):
            self._check_block(block)
        return self.values

    def _check(self, start: int, stop: int) -> None:
        first = (HEADER_BYTES + start * self._row_bytes) // self._block_bytes
        last = (HEADER_BYTES + stop * self._row_bytes - 1) // self._block_bytes
        for block in range(first, last + 1):
            if block in self._unchecked:
                self._check_block(block)

    def _check_block(self, block: int) -> None:
        start = block * self._block_bytes
        data = self._bytes[start : start + self._block_bytes]
        if self._digest(data.data) != self._blocks[block]:
            raise DamagedShards(
                self.path,
                f"bytes {start} to {start + len(data) - 1} do not have the checksum that was written",
            )
        if self._limit is not None:
            # Blocks are a multiple of every value's size and the header is one too, so that no value lies in two blocks.
            values = data[HEADER_BYTES if block == 0 else 0 :].view(self.values.dtype)
            if len(values) and int(values.max()) >= self._limit:
                raise DamagedShards(self.path, f"it holds {int(values.max())}; every value is below {self._limit}")
        self._unchecked.discard(block)


def check_size(path: Path, size: int) -> None:
    """Raise FileNotFoundError where there is no such file, DamagedShards where it is not of `size` bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; tokenise again, or restore the file") from None
    if found != size:
        raise DamagedShards(path, f"it has {found} bytes, {size} were written")
