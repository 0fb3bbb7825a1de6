"""`emu fit-lora`, which is `emu fit` now: a recipe names the module that it trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shlex import join


def main(arguments: Sequence[str]) -> int:
    """Print the command that does it.

    Returns:
        2, the exit code of a request that cannot be met.
    """
    print(
        f"emu fit-lora is emu fit now: run emu fit {join(arguments)}; a recipe of your own names the module with\n"
        "  model:\n    class_path: emu.training.lora.LoraModule",
        file=sys.stderr,
    )
    return 2
