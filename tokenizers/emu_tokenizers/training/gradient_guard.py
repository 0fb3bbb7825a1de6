"""The guard before the optimizer: gradients are clipped, and a step that would do harm changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from emu_tokenizers.files import write_file
from emu_tokenizers.training.spikes import SpikeGuard, SpikeOptions

SKIPPED_FILE = "skipped.jsonl"
"""In a run's folder: a line for each step whose update was skipped, with its numbers, the reason and its documents."""


class GradientGuard:
    """Clips gradients to a norm; a step whose gradient is not finite, or that is a spike, changes nothing.

    Args:
        max_norm: gradients are scaled down to this norm.
        max_skipped: N steps in a row that are not finite end the run.
        spikes: when a step is a spike; None where none is looked for.

    Attributes:
        num_skipped: steps skipped so far.
        skipped: why the last step was skipped; empty where it was not.
    """

    def __init__(self, max_norm: float, max_skipped: int, spikes: SpikeOptions | None = None) -> None:
        self.max_norm, self.max_skipped = max_norm, max_skipped
        self.spikes = None if spikes is None else SpikeGuard(spikes)
        self.num_skipped = 0
        self.skipped = ""
        self._in_a_row = 0

    def problems(self) -> list[str]:
        """What is wrong with the numbers, one sentence each."""
        found = []
        if not self.max_norm > 0:
            found.append(f"max_grad_norm is {self.max_norm}; expected a positive number (inf for no limit)")
        if self.max_skipped < 1:
            found.append(f"max_skipped_steps is {self.max_skipped}; expected 1 or more")
        return found + (self.spikes.options.problems() if self.spikes is not None else [])

    def apply(self, parameters: Iterable[nn.Parameter], step: int, loss: Callable[[], float]) -> float:
        """Clip the gradients of a step, or drop them, so that the optimizer leaves everything as it is.

        Args:
            parameters: with their gradients.
            step: its number, from 0.
            loss: of the whole step, over all of its batches and ranks; asked for where spikes are looked for.

        Returns:
            Their norm before, 0 where it was not finite.
        """
        parameters = list(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.skipped = ""
        if not math.isfinite(value):
            self._in_a_row += 1
            self.skipped = f"gradient norm {value}"
        else:
            self._in_a_row = 0
            if self.spikes is not None:
                self.skipped = self.spikes.judge(loss(), value)
        if not self.skipped:
            return value
        for parameter in parameters:
            parameter.grad = None
        self.num_skipped += 1
        rank_zero_warn(f"step {step}: {self.skipped}; skipped ({self.num_skipped} so far)")
        return value if math.isfinite(value) else 0.0

    def end_if_due(self, step: int) -> None:
        """End the run where too many of the last steps, up to this one, were skipped.

        Raises:
            FloatingPointError: the gradient was not finite for `max_skipped` steps in a row, or too many steps were spikes.
        """
        if self._in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"the gradient was not finite for {self._in_a_row} steps in a row, up to step {step}; lower model.optimizer.lr, or look at "
                f"the documents of these steps, {SKIPPED_FILE}"
            )
        if self.skipped and self.spikes is not None and self.spikes.is_too_much:
            options = self.spikes.options
            raise FloatingPointError(
                f"{options.most} of the last {options.among} steps, up to step {step}, were spikes: {self.skipped}; look at their "
                f"documents, {SKIPPED_FILE}, or lower model.optimizer.lr and go on from a checkpoint before them with --ckpt_path"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        counts: dict[str, Any] = {"num_skipped": self.num_skipped, "skipped_in_a_row": self._in_a_row}
        return counts if self.spikes is None else counts | {"spikes": self.spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from those counts."""
        self.num_skipped, self._in_a_row = int(state["num_skipped"]), int(state["skipped_in_a_row"])
        if self.spikes is not None and "spikes" in state:
            self.spikes.load_state_dict(state["spikes"])


def forget_skipped(folder: Path, step: int) -> None:
    """Take steps from this one on out of a run's list of skipped ones: they are of before it was resumed or started anew."""
    file = folder / SKIPPED_FILE
    if file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) < step]
        write_file(file, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    """The step of a line; infinity for one that a kill has cut, whose step is made anew."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def record_skipped(folder: Path, step: int, why: str, documents: Sequence[Mapping[str, Any]]) -> None:
    """Add a step to a run's list of skipped ones.

    Args:
        folder: of the run.
        step: its number, from 0.
        why: it was skipped.
        documents: source, number and key of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": step, "why": why, "documents": [dict(document) for document in documents]})
    with open(folder / SKIPPED_FILE, "a", encoding="utf-8") as file:
        file.write(line + "\n")
