"""Runs of batch commands over ranks, some of which are killed in the middle of what they write."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from emu import Emu
from emu.cli.main import main

KILLED_AT = ("replace", "fsync", "unlink", "rmdir")
"""Calls of the system before which a process can be killed: between two of them nothing that is on the disk changes."""


def use(monkeypatch: pytest.MonkeyPatch, emu: Emu) -> None:
    """Let every command take this model, whatever it names, without reading it."""

    def loaded(path: str, *, deterministic: bool = False, **options: object) -> Emu:
        return Emu(emu.model, emu.tokenizer, emu.defaults, deterministic=deterministic)

    monkeypatch.setattr(Emu, "from_pretrained", loaded)


def write_lines(folder: Path, count: int = 7) -> Path:
    """Prompts of several sizes; one line is bad, and one names a picture that is missing."""
    lines: list[object] = [
        {"prompt": f"a ball {number}", "label": number, "size": [8, 8 + 4 * (number % 2)]} for number in range(count)
    ]
    lines[1] = {"prompt": 5}
    lines[4] = {"items": [{"image": "none.png"}, "a ball"]}
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def words(command: str, prompts: Path, output: Path, *more: object) -> list[str]:
    """The words of a command that draws a few small things at a time, and to the bit."""
    usual = ["--model", "tiny", "--output", output, "--device", "cpu", "--deterministic", "--batch-size", 2]
    return [*map(str, [command, prompts, *usual, *more])]


def rank_run(arguments: list[str], rank: int = 0, size: int = 1, kill: int | None = None) -> int:
    """Run a rank in a child, and wait for it; see `begun_rank` and `ended`."""
    return ended(begun_rank(arguments, rank, size, kill))


TORCHRUN, SRUN = ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")
"""How launchers tell a process its number, and how many there are."""


def begun_rank(
    arguments: list[str], rank: int, size: int, kill: int | None = None, launcher: tuple[str, str] = TORCHRUN
) -> int:
    """The child in which a rank runs, killed before its call number `kill` of those that change the disk."""
    child = os.fork()
    if not child:
        os.environ.update(zip(launcher, (f"{rank}", f"{size}"), strict=True))
        if kill is not None:
            _die_before(kill)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main(arguments))
    return child


def ended(child: int) -> int:
    """The exit code of a child, minus the signal where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_before(number: int) -> None:
    calls = itertools.count(1)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **options: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **options)

        return call

    for name in KILLED_AT:
        setattr(os, name, dying(getattr(os, name)))
