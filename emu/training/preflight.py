"""What is looked at before the first step: numbers, sources, and whether the end of the run will find what it needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from emu.checkpoints.bundled import find_model_folder
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.written import Written
from emu.families.language import read_emu_config
from emu.training.checkpoints import StepCheckpoint, list_checkpoints
from emu.training.export import exported
from emu_tokenizers.files import holds_others

GIB = 2**30


class CheckData(Callback):
    """Looks at data that had to be prepared, and at the model once it is built, before the first step.

    Args:
        written: the recipes, for the places of what is wrong.
        folder: of the trained model; None where none is to be written.
    """

    def __init__(self, written: Written, folder: Path | None) -> None:
        self._written, self._folder = written, folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a ValueError that lists everything wrong with sources that were not there before."""
        datamodule = getattr(trainer, "datamodule", None)
        if needs_preparation(datamodule):  # others were looked at before anything was prepared
            raise_problems(source_problems(pl_module, datamodule), self._written)
        if getattr(datamodule, "validation_names", None) == ():
            trainer.limit_val_batches = 0  # nothing to validate on, and no warning that it is empty
        report = getattr(datamodule, "tell_row_use", None)
        if trainer.is_global_zero and callable(report):
            report()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a ValueError if the model cannot be exported, or has no room on the disk."""
        raise_problems(export_problems(trainer, pl_module, self._folder), self._written)


def early_problems(trainer: Any, module: LightningModule | None, datamodule: Any) -> list[str | Problem]:
    """Everything that can be known before data is prepared and the model is built.

    Args:
        trainer: or its settings, where it cannot be built.
        module, datamodule: None where they cannot be built.
    """
    found: list[str | Problem] = []
    found += settings_problems(trainer, module, datamodule)
    if isinstance(trainer, Trainer):
        found += folder_problems(trainer)
    if not needs_preparation(datamodule):
        found += source_problems(module, datamodule)
    return found


def settings_problems(trainer: Any, module: LightningModule | None, datamodule: Any) -> list[str]:
    """What is wrong with the numbers of a configuration; one sentence each."""
    found = []
    if trainer.max_steps < 1 and trainer.max_epochs in (None, -1):
        found.append("nothing ends this run; set trainer.max_steps")
    if getattr(trainer.strategy, "_start_method", "popen") not in (None, "popen"):
        found.append(
            "trainer.strategy trains in processes that are forked or spawned, whose weights do not come back, so that nothing could be "
            "exported; use ddp"
        )
    for name in ("accumulate_grad_batches", "log_every_n_steps", "val_check_interval"):
        value = getattr(trainer, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            found.append(f"trainer.{name} is {value}; expected 1 or more")
    for part in (module, datamodule):
        check = getattr(part, "problems", None)
        found += check(trainer) if callable(check) else []
    return found


def needs_preparation(datamodule: Any) -> bool:
    """Whether the sources of a data module are there only after work."""
    prepare = getattr(type(datamodule), "prepare_data", None)
    own = prepare is not None and not prepare.__module__.startswith("lightning.")
    return own or getattr(datamodule, "sources_take_long", False)


def source_problems(module: LightningModule | None, datamodule: Any) -> list[str | Problem]:
    """What is wrong with the sources, and which of their documents are longer than the model can take."""
    check = getattr(datamodule, "source_problems", None)
    found: list[str | Problem] = list(check()) if callable(check) else []
    longest = getattr(datamodule, "longest_documents", None)
    lengths = longest() if callable(longest) and not found else {}
    positions = num_positions(module) if lengths else None
    return found + (position_problems(lengths.items(), positions, new=_is_new(module)) if positions is not None else [])


def position_problems(lengths: Iterable[tuple[str, int]], positions: int, *, new: bool) -> list[Problem]:
    """One problem for each source with documents longer than a model's positions.

    Args:
        lengths: (name of the source, tokens of its longest document).
        positions: `max_position_embeddings` of the model.
        new: whether the model is made for this run, so that it can have more.
    """
    way_out = "raise model.config.max_position_embeddings to {0} or more, or tokenise" if new else "tokenise"
    return [
        Problem(
            f"source {name!r} has documents of up to {longest} tokens, the model has positions for {positions}; "
            f"{way_out.format(longest)} smaller pictures and shorter texts",
            ("model", "config", "max_position_embeddings") if new else ("model", "pretrained"),
        )
        for name, longest in lengths
        if longest > positions
    ]


def num_positions(module: LightningModule | None) -> int | None:
    """Positions of the model that a module trains or will train; None where it does not say."""
    config = getattr(module, "config", None)
    pretrained = getattr(module, "pretrained", None) or getattr(module, "init_from", None)
    # a checkpoint may be named in the place of a folder
    if config is None and pretrained is not None and (folder := find_model_folder(pretrained)).is_dir():
        config = read_emu_config(folder)
    return getattr(config, "max_position_embeddings", None)


def folder_problems(trainer: Trainer) -> list[Problem]:
    """Whether checkpoints and the model will find a folder to be written to."""
    folders = [Path(trainer.default_root_dir)]
    folders += [
        callback.path(trainer) for callback in trainer.checkpoint_callbacks if isinstance(callback, StepCheckpoint)
    ]
    found = []
    for folder in dict.fromkeys(folders):
        there = nearest(folder)
        if not there.is_dir():
            found.append(Problem(f"{folder} cannot be written to: {there} is a file", ("trainer", "default_root_dir")))
        elif not os.access(there, os.W_OK | os.X_OK):
            found.append(
                Problem(f"{folder} cannot be written to: no right to write in {there}", ("trainer", "default_root_dir"))
            )
    return found


def export_problems(trainer: Trainer, module: LightningModule, folder: Path | None) -> list[Problem]:
    """Why the model, once it is trained, could not be written: it has no way to, a file is in the way, the disk is too full."""
    if folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    found = []
    try:
        exported(module)
    except TypeError as error:
        found.append(Problem(str(error), ("export",)))
    if folder.exists() and not folder.is_dir():
        found.append(
            Problem(
                f"{folder} is a file, where the model's folder is to be; remove it, or use --export NAME",
                ("export",),
            )
        )
    found += _in_the_way(trainer, folder)
    needed, free = room_needed(trainer, module), shutil.disk_usage(nearest(folder)).free
    if needed > free:
        found.append(
            Problem(
                f"{folder.parent} has {free / GIB:.1f} GiB free; the model and its checkpoints need at least {needed / GIB:.1f} GiB. Make "
                "room, or lower checkpoint.keep",
                ("trainer", "default_root_dir"),
            )
        )
    return found


def _in_the_way(trainer: Trainer, folder: Path) -> list[Problem]:
    """Why a folder must not be replaced by the model: the run or its checkpoints lie in it, or other things than a model."""
    place, run = folder.resolve(), Path(trainer.default_root_dir).resolve()
    kept = [run, *(c.path(trainer).resolve() for c in trainer.checkpoint_callbacks if isinstance(c, StepCheckpoint))]
    why = ""
    if any(one.is_relative_to(place) for one in kept):
        why = "holds what this run writes"
    elif place.parent != run and holds_others(place, ("config.json", "adapter_config.json")):
        why = "holds other things than a model"
    text = f"{folder} {why}, and the trained model would replace all of it; name a folder of its own with --export NAME"
    return [Problem(text, ("export",))] if why else []


def room_needed(trainer: Trainer, module: LightningModule) -> int:
    """Bytes that the run will write at least: checkpoints of weights and one moment each, and the model."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    kept = 0
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, StepCheckpoint):
            kept += max(1, callback.keep - len(list_checkpoints(callback.path(trainer))))
    return weights + kept * 2 * trained


def nearest(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next((part for part in (path, *path.parents) if part.exists()), path)


def _is_new(module: Any) -> bool:
    return getattr(module, "pretrained", None) is None
