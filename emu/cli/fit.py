"""`emu fit` and `emu fit-tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from emu.recipes import resolve_config

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

MEMORY = "--memory"
GIB = 2**30


def fit(arguments: Sequence[str]) -> int | None:
    """Train a transformer, run a job of several stages, or with --memory say what fine-tuning with adapters takes."""
    check_recipes(arguments)
    from emu.training import cli, job, job_recipe

    if MEMORY in arguments:
        print_memory([word for word in arguments if word != MEMORY])
        return None
    recipe = job_recipe.read_job(arguments)
    if recipe is not None:
        return job.run_job(recipe)
    print_folder(cli.fit(arguments))
    return None


def fit_tokenizer(arguments: Sequence[str]) -> None:
    """Train a vision tokenizer."""
    check_recipes(arguments)
    from emu.training import cli

    print_folder(cli.fit_tokenizer(arguments))


def check_recipes(arguments: Sequence[str]) -> None:
    """Look for the recipes that are named, which takes no time, before torch and Lightning are loaded, which takes seconds.

    Raises:
        FileNotFoundError: a value of --config is neither a file nor a recipe.
    """
    for word, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        named = value if equals else after
        if option in ("--config", "-c") and named and not named.startswith("-"):
            for one in named.split(","):
                resolve_config(one)


def print_folder(module: LightningModule) -> None:
    """Print where the run is."""
    trainer = module.trainer
    if trainer.is_global_zero:
        print(f"{trainer.global_step} steps done; curves, checkpoints and the model are in {trainer.default_root_dir}")


def print_memory(arguments: Sequence[str]) -> None:
    """Print the memory that a recipe's step takes, without training.

    Raises:
        ValueError, FileNotFoundError: the configuration cannot work, or trains no adapters.
    """
    from emu.training.lora.memory import needed_memory

    memory, length = needed_memory(arguments)
    parts = {"weights": memory.weights, "adapters": memory.adapters, "activations": memory.activations}
    words = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    print(f"{memory.total / GIB:.1f} GiB for rows of {length} tokens ({words}), beside what the device takes; computed")
