"""The arguments of `emu evaluate`: which suites they select, and the options of each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.evaluation.suites import Suite

DEFAULT_SUITE, ALL = "calibration", "all"


def suite_names(words: Sequence[str]) -> list[str]:
    """The suites that the words ask for, which say what other options there are; `all` stands for all that are registered.

    Raises:
        ValueError: a suite is named twice, or `all` beside others.
    """
    only = argparse.ArgumentParser("emu evaluate", add_help=False, allow_abbrev=False)
    only.add_argument("--suite", default=DEFAULT_SUITE)
    said = only.parse_known_args(list(words))[0].suite
    names = said.split(",")
    if len(set(names)) < len(names) or (ALL in names and len(names) > 1):
        raise ValueError(f"--suite is {said}; expected each suite once, or {ALL} alone")
    return named_suites(said)


def named_suites(said: str) -> list[str]:
    """The suites of a word such as "vqa,likelihood" or "all"."""
    if said != ALL:
        return said.split(",")
    from emu.evaluation.suites import SUITES

    return list(SUITES)


def parser(suites: Mapping[str, Suite]) -> argparse.ArgumentParser:
    """Options of the command, those of some suites among them."""
    from emu.evaluation.suites import SUITES

    width = max(map(len, SUITES))
    listed = "\n".join(f"  {one:<{width}}  {each.summary}" for one, each in SUITES.items())
    found = argparse.ArgumentParser(
        "emu evaluate",
        description=f"Evaluate models or vision tokenizers.\n\nsuites:\n{listed}\n\nHelp for another suite's options: "
        "emu evaluate --suite NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # suites share options such as --seed
    )
    found.add_argument(
        "model", nargs="+", help="folder, repository or bundled model to evaluate, e.g. runs/shapes/model"
    )
    found.add_argument(
        "--suite",
        metavar="NAME",
        default=DEFAULT_SUITE,
        help=f"what to run: one suite, several as a,b, or {ALL} that apply to the models; also a class path such as my_module.MySuite "
        "(default: %(default)s)",
    )
    found.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for <suite>.json, <suite>.png and metrics.json (default: the model's parent folder); with several suites or models "
        "also for evaluation.html and evaluation.json (default: evaluation)",
    )
    for suite in suites.values():
        suite.add_options(found)
    return found


def requests_of(words: Sequence[str], suites: Mapping[str, Suite]) -> dict[str, argparse.Namespace]:
    """The request to each suite: what the words say, and its own defaults for what they do not.

    Two suites may have an option of one name and different defaults for it.
    """
    joint = parser(suites)
    names = vars(joint.parse_args(words))
    absent = object()
    joint.set_defaults(**dict.fromkeys(names, absent))
    given = {name: value for name, value in vars(joint.parse_args(words)).items() if value is not absent}
    found = {}
    for name, suite in suites.items():
        own = vars(parser({name: suite}).parse_args(["-"]))
        found[name] = argparse.Namespace(**own | {option: value for option, value in given.items() if option in own})
    return found
