"""The table of commands; extensions add to it.

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
"""Takes the command's arguments and returns an exit code, or None for 0."""


@dataclass(frozen=True)
class Command:
    """A subcommand of `emu`.

    Attributes:
        function: what to run; the string "module:function" is imported when the command is used.
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
            "train on handwritten digits or colour pictures from scratch and view the results",
        ),
        "fit-tokenizer": Command("emu.cli.fit:fit_tokenizer", "train a vision tokenizer from a recipe"),
        "fit-text": Command("emu.cli.fit_text:main", "train a text tokenizer on the captions or texts of a source"),
        "tokenize": Command("emu.cli.tokenize:main", "turn raw documents into token shards"),
        "shards": Command("emu.cli.shards:main", "inspect, check and merge token shards"),
        "show-batch": Command("emu.cli.show_batch:main", "print and draw a packed row of a recipe or of token shards"),
        "fit": Command("emu.cli.fit:fit", "train a transformer from a recipe"),
        "fit-lora": Command("emu.cli.fit_lora:main", "deprecated: prints the command that replaces it"),
        "generate-images": Command("emu.cli.generate_images:main", "generate images from a file of prompts"),
        "edit-images": Command("emu.cli.edit_images:main", "edit pictures according to prompts"),
        "generate-videos": Command("emu.cli.generate_videos:main", "generate clips from a file of prompts"),
        "describe": Command("emu.cli.describe:main", "write text about images"),
        "serve": Command("emu.cli.serve:main", "serve a model through an OpenAI-compatible API, with a web page"),
        "rank": Command(
            "emu.cli.rank:main", "score generated pictures with a reward, and write them ranked and as pairs"
        ),
        "evaluate": Command("emu.cli.evaluate:main", "evaluate a trained model"),
        "join": Command("emu.cli.join:main", "combine a text and a vision tokenizer into one document tokenizer"),
        "convert": Command("emu.cli.convert:main", "convert between released checkpoints and Emu's own format"),
        "verify": Command("emu.cli.verify:main", "compare a model's folder with transformers on this machine"),
        "plan": Command("emu.cli.plan:main", "estimate what training or generation needs"),
        "recipes": Command("emu.cli.recipes:main", "list the recipes, or copy one"),
        "doctor": Command("emu.cli.doctor:main", "show what this machine has, what is missing, and which kernels run"),
    },
)
register = COMMANDS.register


def available() -> dict[str, Command]:
    """Return the commands that this installation can run."""
    return {name: command for name, command in COMMANDS.items() if command.exists}
