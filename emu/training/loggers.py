"""Loggers beside the table of curves, by name: `emu fit ... --loggers '[tensorboard]'`.

from emu.training.loggers import LOGGERS
LOGGERS.register("mine", LoggerKind(package, name of the package to install, make, show))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from emu.configuration.problems import Problem
from emu_tokenizers.pixels.images import to_rgb
from emu_tokenizers.registry import Registry


@dataclass(frozen=True)
class Sample:
    """Something that a model made in training.

    Attributes:
        name: of the sample, the same in every set, e.g. "image-0"; a file's name.
        prompt: what it was made for.
        frames: a picture, or the frames of a clip; none for a text alone.
        fps: of a clip.
        text: what was written; empty for pictures and clips alone.
    """

    name: str
    prompt: str
    frames: tuple[Image.Image, ...] = ()
    fps: float = 0.0
    text: str = ""

    @property
    def strip(self) -> Image.Image:
        """The frames beside each other."""
        return Image.fromarray(np.concatenate([np.asarray(to_rgb(frame)) for frame in self.frames], axis=1))


@dataclass(frozen=True)
class LoggerKind:
    """A kind of logger.

    Attributes:
        module: that must be importable.
        make: the logger of a run, given its folder.
        shows: the class of the loggers that `show` can show samples in.
        show: show samples of a step.
    """

    module: str
    make: Callable[[Path], Logger]
    shows: type[Logger]
    show: Callable[[Any, Sequence[Sample], int], None]


def show_samples(loggers: Sequence[Logger], samples: Sequence[Sample], step: int) -> None:
    """Show the samples of a step in each logger of a registered kind; the others take numbers alone."""
    for logger in loggers:
        for kind in LOGGERS.values():
            if isinstance(logger, kind.shows):
                kind.show(logger, samples, step)


def make_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """The loggers of these names whose packages are installed; `logger_problems` names the others."""
    kinds = [LOGGERS[name] for name in names if name in LOGGERS]
    return [kind.make(folder) for kind in kinds if find_spec(kind.module) is not None]


def logger_problems(names: Sequence[str]) -> list[Problem]:
    """What keeps these loggers from being made, one problem each."""
    found = []
    for name in names:
        if name not in LOGGERS:
            found.append(Problem(f"loggers names {name!r}; expected some of {', '.join(LOGGERS)}", ("loggers",)))
        elif find_spec(LOGGERS[name].module) is None:
            package = LOGGERS[name].module
            text = f"the logger {name} needs {package}, which is not installed; run pip install {package}, or leave {name} out of loggers"
            found.append(Problem(text, ("loggers",)))
    return found


def _make_board(folder: Path) -> Logger:
    return TensorBoardLogger(str(folder), name="", version="tensorboard")


def _show_on_board(logger: TensorBoardLogger, samples: Sequence[Sample], step: int) -> None:
    board = logger.experiment
    for sample in samples:
        if sample.frames:  # as a strip: its clips need a package of their own
            board.add_image(f"samples/{sample.name}", np.asarray(sample.strip), step, dataformats="HWC")
        board.add_text(f"samples/{sample.name}", f"{sample.prompt}\n\n{sample.text}".strip(), step)


def _make_wandb(folder: Path) -> Logger:
    return WandbLogger(name=folder.name, save_dir=str(folder), project=os.environ.get("WANDB_PROJECT", "emu"))


def _show_in_wandb(logger: WandbLogger, samples: Sequence[Sample], step: int) -> None:
    for sample in samples:
        if sample.frames:
            logger.log_image(f"samples/{sample.name}", [sample.strip], step=step, caption=[sample.prompt])
    texts = [[sample.name, sample.prompt, sample.text] for sample in samples if sample.text]
    if texts:
        logger.log_text("samples/texts", columns=["name", "prompt", "text"], data=texts, step=step)


LOGGERS: Registry[LoggerKind] = Registry(
    "logger",
    {
        "tensorboard": LoggerKind("tensorboard", _make_board, TensorBoardLogger, _show_on_board),
        "wandb": LoggerKind("wandb", _make_wandb, WandbLogger, _show_in_wandb),
    },
)
"""What `--loggers` may name."""
register = LOGGERS.register
