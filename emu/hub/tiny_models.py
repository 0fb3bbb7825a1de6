"""Small random models of released families, in their own files, for tests, benchmarks and a first try without downloads.

python -m emu.hub.tiny_models emu3 FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from emu.families import FAMILIES
from emu.families.base import louder
from emu.model import EmuConfig, EmuForCausalLM


def write(name: str, folder: str | Path, *, alone: bool = False, **model: Any) -> Path:
    """Write a tiny model of a family with its vision tokenizer in or under its folder.

    Args:
        name: of the family.
        folder: made where it is missing.
        alone: leave out a vision tokenizer that the family keeps in a folder of its own.
        model: overrides fields of the transformer's configuration.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such family, or it has no tiny model.
    """
    folder = Path(folder)
    FAMILIES.find(name).write_tiny(folder, random_weights, alone=alone, **model)
    return folder


def random_weights(config: EmuConfig) -> Mapping[str, Tensor]:
    """Weights of a transformer whose choices are far apart, by our names."""
    return louder(EmuForCausalLM(config).state_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    names = [name for name, family in FAMILIES.items() if family.has_tiny]
    words = argparse.ArgumentParser(prog="python -m emu.hub.tiny_models", description="Write a tiny random model.")
    words.add_argument("family", choices=names)
    words.add_argument("folder", type=Path)
    given = words.parse_args(arguments)
    write(given.family, given.folder)


if __name__ == "__main__":
    main()
