"""Which module a recipe trains; and module, data and trainer built from it, the others still where one of them cannot be.

    model:
      class_path: emu.training.lora.LoraModule
      init_args: {pretrained: emu3-gen, rank: 16}

The arguments may stand beside `class_path` too, as they do where the command's own module is trained; options leave `init_args` out.
Inside, they always stand directly under `model`, so that recipes of the command's own module can be merged with others.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from emu.configuration import import_object
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.written import KeyPath, Written
from emu.training.checkpoints import StepCheckpoint
from emu.training.refusals import reason

MODEL = "model"
CLASS_PATH, ARGUMENTS = f"--{MODEL}.class_path", f"--{MODEL}.init_args."


def split_class(options: list[str]) -> tuple[list[str], list[str]]:
    """Options apart from those that name the module.

    Returns:
        The others, without `init_args`; and the class paths that are named.
    """
    others, named = [], []
    for option in options:
        key, equals, value = option.partition("=")
        if key == CLASS_PATH or (key == f"--{MODEL}" and equals and not value.lstrip().startswith("{")):
            named.append(value)
        else:
            others.append(f"--{MODEL}." + option.removeprefix(ARGUMENTS) if option.startswith(ARGUMENTS) else option)
    return others, named


def take_class(written: Written) -> str | None:
    """Take the class of the module out of what is written; its arguments then stand directly under `model`."""
    class_path = None
    for tree in (written.files, written.tree):
        table = tree.get(MODEL)
        if isinstance(table, dict):
            class_path = table.pop("class_path", None)
            arguments = table.pop("init_args", None)
            table.update(arguments if isinstance(arguments, dict) else {})
            _rename_references(tree)
    written.places = {_lifted(path): place for path, place in written.places.items()}
    return class_path


def find_class(class_path: str | None, default: type[LightningModule], written: Written) -> type[LightningModule]:
    """The class that is named, else `default`.

    Raises:
        ValueError: it cannot be imported, or is not the class of a LightningModule; with the place where it is named.
    """
    if class_path is None:
        return default
    try:
        found = import_object(class_path)
    except ValueError as error:
        raise_problems([Problem(f"model.class_path: {error}", (MODEL, "class_path"))], written)
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        text = f"model.class_path is {class_path!r}; expected the class path of a LightningModule"
        raise_problems([Problem(text, (MODEL, "class_path"))], written)
    return found


def with_class(values: dict[str, Any], class_path: str | None) -> dict[str, Any]:
    """Plain values of a configuration with the class of its module, where that is not the command's own (None)."""
    if class_path is None:
        return values
    return {
        name: {"class_path": class_path, "init_args": value} if name == MODEL else value
        for name, value in values.items()
    }


def _rename_references(node: Any) -> None:
    """Let interpolations find the arguments where they stand now."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            node[key] = value.replace("${" + f"{MODEL}.init_args.", "${" + f"{MODEL}.")
        elif isinstance(value, (dict, list)):
            _rename_references(value)


def _lifted(path: KeyPath) -> KeyPath:
    return (MODEL, *path[2:]) if path[:2] == (MODEL, "init_args") and len(path) > 2 else path


BUILD_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, MisconfigurationException)
"""What constructors raise for what they cannot take."""


def build_apart(parser: LightningArgumentParser, config: Namespace) -> tuple[dict[str, Any], list[Problem]]:
    """Build the parts one by one.

    Returns:
        The parts that can be built, by "model", "data" and "trainer" (of the last only what it is made of), and a problem for each of the
        others.
    """
    built: dict[str, Any] = {}
    problems = []
    for part, groups in (("model", True), ("data", False), ("trainer", False)):
        try:
            alone = parser.instantiate_classes(Namespace(**{part: config[part]}), instantiate_groups=groups)
            built[part] = alone[part]
        except BUILD_ERRORS as error:
            problems.append(Problem(reason(str(error)), (part,)))
    try:
        StepCheckpoint(**config.checkpoint.as_dict())
    except ValueError as error:
        problems.append(Problem(reason(str(error)), ("checkpoint",)))
    return built, problems


def complete_settings(trainer: Namespace) -> None:
    """Set what Lightning needs beside the trainer's options that were given.

    An interval of validation in steps counts across epochs, which only pace the data.
    """
    interval = trainer.val_check_interval
    if isinstance(interval, int) and not isinstance(interval, bool) and trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = None
