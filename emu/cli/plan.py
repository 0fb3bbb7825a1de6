"""`emu plan`: estimate what training or generation needs, before anything is loaded or bought.

emu plan --config emu3-8b-stage1 --gpus 64
emu plan --config digits                                  # memory of a recipe that trains on processors
emu plan --generate emu3-gen --size 720 720 --batch 4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from emu.cli.plan_tables import generation_lines, training_lines
from emu.training.planning.machines import CARDS


def parser() -> argparse.ArgumentParser:
    """The options of the command; what it does not know is an option of `emu fit`."""
    words = argparse.ArgumentParser(
        prog="emu plan",
        description="Estimate what a training run takes (parameters, memory, communication, time), or what generation with a model takes. "
        "GPU figures are modelled, not measured. Other options are those of emu fit, e.g. --trainer.max_steps 1000.",
        allow_abbrev=False,
    )
    words.add_argument(
        "--config", action="append", metavar="RECIPE", help="the recipe, as for emu fit; may be repeated"
    )
    words.add_argument("--gpus", type=int, metavar="N", help="number of GPUs; by default that of the recipe")
    words.add_argument("--gpu", choices=sorted(CARDS), default="h100", help="GPU type (default h100)")
    words.add_argument("--generate", metavar="MODEL", help="folder of a model to generate with, instead of a recipe")
    words.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="with --generate: size of the pictures"
    )
    words.add_argument(
        "--frames", type=int, help="with --generate: frames per clip; without it, pictures are generated"
    )
    words.add_argument("--batch", type=int, default=1, help="with --generate: batch size (default 1)")
    words.add_argument("--guidance-scale", type=float, help="with --generate: guidance scale; 1 needs no second row")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where the plan does not fit the card.

    Raises:
        ValueError, FileNotFoundError: the request is wrong.
    """
    given, others = parser().parse_known_args(arguments)
    if (given.config is None) == (given.generate is None):
        raise ValueError("give a recipe, --config NAME, or a model to draw with, --generate MODEL")
    for name, value in (("--gpus", given.gpus), ("--batch", given.batch), ("--frames", given.frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    if given.generate is not None:
        if others:
            raise ValueError(f"{others[0]} is not an option of emu plan --generate; leave it out")
        shape = (given.size, given.frames, given.batch, given.guidance_scale)
        lines, fits = generation_lines(given.generate, *shape, CARDS[given.gpu])
    else:
        recipes = [word for recipe in given.config for word in ("--config", recipe)]
        lines, fits = training_lines([*recipes, *others], given.gpus, CARDS[given.gpu])
    print("\n".join(lines))
    return 0 if fits else 1
