"""Loggers beside the table of curves, by name: `emu fit ... --loggers '[tensorboard]'`.

from emu.training.loggers import LOGGERS
LOGGERS.register("mine", LoggerKind(package, name of the package to install, make, show))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from emu.configuration.problems import Problem
from emu.media import gif_bytes
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
        name = f"samples/{sample.name}"
        if len(sample.frames) > 1:
            _add_clip(board, name, sample, step)
        elif sample.frames:
            board.add_image(name, np.asarray(to_rgb(sample.frames[0])), step, dataformats="HWC")
        board.add_text(name, f"{sample.prompt}\n\n{sample.text}".strip(), step)


def _add_clip(board: Any, name: str, sample: Sample, step: int) -> None:
    """Show a clip: as `add_video` does, which encodes with a package of its own, a GIF is a picture that moves."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = sample.frames[0].size
    content = gif_bytes(sample.frames, sample.fps)
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)


def _make_wandb(folder: Path) -> Logger:
    return WandbLogger(name=folder.name, save_dir=str(folder), project=os.environ.get("WANDB_PROJECT", "emu"))


def _show_in_wandb(logger: WandbLogger, samples: Sequence[Sample], step: int) -> None:
    for sample in samples:
        name = f"samples/{sample.name}"
        if len(sample.frames) > 1:
            clip = BytesIO(gif_bytes(sample.frames, sample.fps))
            logger.log_video(name, [clip], step=step, caption=[sample.prompt], format=["gif"])
        elif sample.frames:
            logger.log_image(name, [sample.frames[0]], step=step, caption=[sample.prompt])
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
