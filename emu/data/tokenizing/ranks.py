"""Which of several processes this one is, on one machine or many, and how the last of them is found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_tokenizers.files import holding, read_json, write_json

FOLDER = ".ranks"
"""In the output: what each rank notes when it is done. It goes when the folder is closed."""


@dataclass(frozen=True)
class Rank:
    """One of `size` processes that share the shards of a folder: those whose number is `number` modulo `size`."""

    number: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Rank:
        """The rank that torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_NTASKS) gave; 0 of 1 without.

        Raises:
            ValueError: the variables are not numbers, or the rank is not below their number.
        """
        for number, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if number in variables and size in variables:
                values = variables[number], variables[size]
                if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
                    raise ValueError(
                        f"{number} is {values[0]} and {size} is {values[1]}; expected a rank below their number"
                    )
                return cls(int(values[0]), int(values[1]))
        return cls()

    def takes(self, shard: int) -> bool:
        """Whether the shard of this number is of this rank."""
        return shard % self.size == self.number

    @contextmanager
    def holding(self, output: Path, work: str) -> Iterator[None]:
        """Hold this rank's part of the output, and the folder itself as rank 0; raises `FolderInUse`."""
        if self.size == 1:
            with holding(output, work):
                yield
            return
        with holding(output / FOLDER / f"{self.number}", f"{work}, rank {self.number}"):
            if self.number:
                yield
            else:
                with holding(output, work):
                    yield

    def note(self, output: Path, told: Mapping[str, Any] | None) -> None:
        """Note what this rank has done; None takes back what an earlier run noted."""
        if self.size == 1:
            return
        file = output / FOLDER / f"{self.number}" / "done.json"
        if told is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, told)

    def is_last(self, output: Path, told: Mapping[str, Any]) -> bool:
        """Whether all ranks have noted the same as this one."""
        if self.size == 1:
            return True
        plain = json.loads(json.dumps(told))
        try:
            return all(read_json(output / FOLDER / f"{one}" / "done.json") == plain for one in range(self.size))
        except (FileNotFoundError, ValueError):
            return False
