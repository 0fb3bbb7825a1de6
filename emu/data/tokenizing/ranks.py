"""Which of several processes this one is, on one machine or many, and how the last of them is found."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.lines import shown
from emu_tokenizers.files import LOCK_FILE, FolderInUse, holding, read_json, write_json

FOLDER = ".ranks"
"""In the output: a folder for each rank, with its lock, what it works on, and what it notes when it is done."""
WORK, DONE = "work.json", "done.json"
LOOKING, CLOSING = "looking", "closing"
"""What the locks of others are held for by ranks that soon let go of them."""
PATIENCE = 10.0
"""Seconds that a rank waits for the lock of another that is about to let go of it, or to close the output."""


@dataclass(frozen=True)
class Rank:
    """One of `size` processes that share the parts of a folder: those whose number is `number` modulo `size`.

    Attributes:
        number: which one this is, from 0.
        size: how many there are.
        local: which one of its machine this is, from 0.
    """

    number: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Rank:
        """The rank that torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_NTASKS) gave; 0 of 1 without.

        Raises:
            ValueError: the variables are not numbers, or the rank is not below their number.
        """
        torchrun, srun = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        names = [torchrun, srun]
        if "SLURM_JOB_ID" in variables and "SLURM_STEP_ID" not in variables:
            names = [torchrun]  # the script of a job, which tells how many tasks srun would start, and runs once
        for number, size, local in names:
            if number in variables and size in variables:
                values = variables[number], variables[size]
                if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
                    raise ValueError(
                        f"{number} is {values[0]} and {size} is {values[1]}; expected a rank below their number"
                    )
                place = variables.get(local, "0")
                return cls(int(values[0]), int(values[1]), int(place) if place.isdecimal() else 0)
        return cls()

    def takes(self, part: int) -> bool:
        """Whether the part of this number is of this rank."""
        return part % self.size == self.number

    def folder(self, output: Path) -> Path:
        """Where this rank keeps what is its own until the output is closed."""
        return output / FOLDER / f"{self.number}"

    @contextmanager
    def holding(self, output: Path, work: str) -> Iterator[None]:
        """Hold this rank's part of the output, and the folder itself as rank 0; raises `FolderInUse`."""
        if self.size == 1:
            with holding(output, work):
                yield
            return
        with ExitStack() as held:
            mine = self.folder(output)
            _hold_soon(mine, f"{work}, rank {self.number}", held)
            # Of an earlier run; another rank would take it for what is worked on now.
            (mine / WORK).unlink(missing_ok=True)
            if not self.number:
                _hold_soon(output, work, held)
            yield

    def note(self, output: Path, told: Mapping[str, Any] | None) -> None:
        """Note what this rank has done; None takes back what an earlier run noted."""
        if self.size == 1:
            return
        file = self.folder(output) / DONE
        if told is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, told)

    def is_last(self, output: Path, told: Mapping[str, Any]) -> bool:
        """Whether all ranks have noted the same as this one."""
        if self.size == 1:
            return True
        plain = json.loads(json.dumps(told))
        return all(_noted(output / FOLDER / f"{one}" / DONE) == plain for one in range(self.size))

    def begin(self, output: Path, told: Mapping[str, Any]) -> None:
        """Say what this rank works on, and take back what an earlier run noted.

        Args:
            output: whose rank this process holds.
            told: what all ranks of one work say alike.

        Raises:
            ValueError: another rank works there now, and says something else.
        """
        self.note(output, None)
        if self.size > 1:
            write_json(self.folder(output) / WORK, told)
        plain = json.loads(json.dumps(told))
        for folder in rank_folders(output):
            theirs = _noted(folder / WORK)
            if folder == self.folder(output) or theirs in (None, plain):
                continue
            # Read once more: a rank that begins takes the lock, and takes away what an earlier run left there.
            if _is_in_use(folder) and _noted(folder / WORK) == theirs:
                who = "this process" if self.size == 1 else f"rank {self.number} of {self.size}"
                raise ValueError(
                    f"rank {folder.name} works in {output} on {shown(theirs)}, and {who} on {shown(plain)}; expected the same lines, "
                    "settings, model and number of ranks; start all ranks with one command, or name another folder"
                )

    @contextmanager
    def closing(self, output: Path, told: Mapping[str, Any]) -> Iterator[bool]:
        """Hold the parts of all ranks where all have noted the same: True for one of them, which closes the output in the block.

        Ranks call this once they have let go of their own parts, and then hold the output too; a process alone holds that already.
        Who comes too early finds a rank that is not done, which will call later; who comes too late finds no notes. What ranks
        keep of their own goes at the end.

        Args:
            output: that is shared.
            told: what this rank has noted.
        """
        with ExitStack() as held:
            end = time.monotonic() + PATIENCE
            ours = self._held(output, held)
            while ours is None and self.is_last(output, told) and time.monotonic() < end:
                time.sleep(random.uniform(0.01, 0.1))
                ours = self._held(output, held)
            # Another rank may have closed the output before it let go of the lock.
            is_last = ours is not None and self.is_last(output, told)
            if not is_last:
                held.close()
            yield is_last
            for folder in ours or () if is_last else ():
                _clear(folder)

    def _held(self, output: Path, held: ExitStack) -> list[Path] | None:
        """Hold what is needed to close an output; returns the folders of ranks, None and nothing held where another has one of them."""
        ours = []
        try:
            if self.size > 1:
                held.enter_context(holding(output, CLOSING))
            for folder in rank_folders(output):
                with suppress(FolderInUse) if self.size == 1 else nullcontext():
                    held.enter_context(holding(folder, CLOSING))
                    ours.append(folder)
        except FolderInUse:
            held.close()
            return None
        return ours


def rank_folders(output: Path) -> list[Path]:
    """The folders of all ranks that ever worked in an output, by number."""
    folders = [folder for folder in (output / FOLDER).glob("*") if folder.name.isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name))


def _clear(folder: Path) -> None:
    (folder / DONE).unlink(missing_ok=True)  # first: a rank that is done has all that its note stands for
    for file in folder.iterdir():
        if file.name != LOCK_FILE:
            file.unlink(missing_ok=True)


def _noted(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file)
    except (FileNotFoundError, ValueError):
        return None


def _is_in_use(folder: Path) -> bool:
    try:
        with holding(folder, LOOKING):
            return False
    except FolderInUse:
        return True


def _hold_soon(folder: Path, work: str, held: ExitStack) -> None:
    """Hold a folder, once a rank that looks at it or closes it has let go of it.

    Raises:
        FolderInUse: another process works there.
    """
    while True:
        try:
            held.enter_context(holding(folder, work))
            return
        except FolderInUse:
            holder = _noted(folder / LOCK_FILE)  # None while that is written
            if holder is not None and holder.get("work") not in (LOOKING, CLOSING):
                raise
        time.sleep(random.uniform(0.01, 0.1))
