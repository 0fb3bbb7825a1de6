"""The table of commands; an extension adds to it.

    from emu.cli import Command, register

    def main(words: Sequence[str]) -> int: ...

    register("count-words", Command(main, "count the words of captions"))

Then `emu --help` lists it, and `emu count-words FILE` calls `main(["FILE"])`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

from emu_tokenizers.registry import Registry

Main: TypeAlias = Callable[[Sequence[str]], "int | None"]
"""Takes the words after the command's name, and returns an exit code, or None for 0."""


@dataclass(frozen=True)
class Command:
    """A subcommand of `emu`.

    Attributes:
        function: what runs; as text, "module:function", it is imported when the command is used.
        summary: one line for `emu --help`.
    """

    function: Main | str
    summary: str

    @property
    def exists(self) -> bool:
        """Whether this installation has the module that the function lives in."""
        if not isinstance(self.function, str):
            return True
        module = self.function.partition(":")[0]
        parent = module.rpartition(".")[0]
        return (parent in sys.modules or find_spec(parent) is not None) and find_spec(module) is not None

    def load(self) -> Main:
        """The function, imported."""
        if not isinstance(self.function, str):
            return self.function
        # Text, so that `emu --help` and each command load only what they need: the one place of imports by string.
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


COMMANDS: Registry[Command] = Registry(
    "command",
    {
        "demo": Command(
            "emu.cli.demo:main",
            "train on handwritten digits, or on colour pictures, from nothing and look at the results",
        ),
        "fit-tokenizer": Command("emu.cli.fit:fit_tokenizer", "train a vision tokenizer from a recipe"),
        "fit-text": Command("emu.cli.fit_text:main", "train a text tokenizer on the captions or texts of a source"),
        "tokenize": Command("emu.cli.tokenize:main", "turn raw documents into token shards"),
        "shards": Command("emu.cli.shards:main", "look at token shards, check them, merge them"),
        "show-batch": Command("emu.cli.show_batch:main", "print and draw a packed row of a recipe or of token shards"),
        "fit": Command("emu.cli.fit:fit", "train a transformer from a recipe"),
        "fit-lora": Command("emu.cli.fit_lora:main", "of an earlier version: prints the command that is used now"),
        "generate-images": Command("emu.cli.generate_images:main", "draw images for a file of prompts"),
        "edit-images": Command("emu.cli.edit_images:main", "draw pictures anew as prompts say"),
        "generate-videos": Command("emu.cli.generate_videos:main", "make clips for a file of prompts"),
        "describe": Command("emu.cli.describe:main", "write text about images"),
        "serve": Command("emu.cli.serve:main", "serve a model through OpenAI's interface, with a page to try it"),
        "rank": Command(
            "emu.cli.rank:main", "score drawn pictures with a reward, and write them in order and as pairs"
        ),
        "evaluate": Command("emu.cli.evaluate:main", "measure a trained model"),
        "join": Command("emu.cli.join:main", "make one tokenizer of documents from a text and a vision tokenizer"),
        "convert": Command("emu.cli.convert:main", "turn released checkpoints into folders of ours"),
        "verify": Command("emu.cli.verify:main", "compare a model's folder with transformers on this machine"),
        "plan": Command("emu.cli.plan:main", "say what a training run, or drawing with a model, will take"),
        "recipes": Command("emu.cli.recipes:main", "list the recipes, or copy one"),
        "doctor": Command("emu.cli.doctor:main", "show what this machine has, what is missing, and which kernels run"),
    },
)
register = COMMANDS.register


def available() -> dict[str, Command]:
    """The commands that this installation can run."""
    return {name: command for name, command in COMMANDS.items() if command.exists}
