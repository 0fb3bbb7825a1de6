"""`emu evaluate`: measure a trained model where the right answers are known exactly, or a vision tokenizer on pictures and clips.

emu evaluate runs/shapes/model --suite calibration
emu evaluate runs/shapes/model --suite shapes --guidance-scale 2
emu evaluate runs/vision-tokenizer/model --suite tokenizer --images photographs
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.evaluation.suites import Suite

DEFAULT_SUITE = "calibration"
TOKENIZER = "tokenizer"
MODEL_FILES = ("config.json", "multimodal_tokenizer.json", "emu.json")
"""A folder that holds one of these is a model's, and nothing else is written into it."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write.

    Returns:
        The exit code of the suite's report: 1 where something is wrong with what was measured (bits below what is possible, files that
        cannot be read), else 0.

    Raises:
        FileNotFoundError, ValueError: an unknown suite, or what the suite cannot measure; before any work.
    """
    words = in_todays_form(arguments)
    name = suite_name(words)
    from emu.evaluation.suites import find_suite
    from emu_tokenizers.files import holding

    suite = find_suite(name)
    found = parser(suite)
    request = found.parse_args(words)
    if request.suite != name:
        found.error("write the option --suite in full")
    subject = suite.prepare(request)
    folder = request.output or report_folder(request.model)
    report = suite.run(subject, print)
    with holding(folder, "emu evaluate"):  # metrics.json is read and written again
        *most, last = map(str, report.write(folder, name.rpartition(".")[2]))
    print(f"written to {', '.join(most)} and {last}" if most else f"written to {last}")
    return report.exit_code


def in_todays_form(words: Sequence[str]) -> list[str]:
    """Write `emu evaluate tokenizer PATH`, the form of earlier versions, as `emu evaluate PATH --suite tokenizer`.

    The first word meant two things: a suite, or a model in a folder of that name. It is a model's wherever a suite is named; without one
    the earlier form holds for one more version, so that scripts keep working, and then goes.
    """
    if list(words[:1]) != [TOKENIZER] or any(word.partition("=")[0] == "--suite" for word in words):
        return list(words)
    advice = "write `emu evaluate PATH --suite tokenizer`; `emu evaluate tokenizer PATH` goes with the next version"
    warnings.warn(advice, DeprecationWarning, stacklevel=2)
    return [*words[1:], "--suite", TOKENIZER]


def suite_name(words: Sequence[str]) -> str:
    """The suite that the words ask for: it says which other options there are."""
    only = argparse.ArgumentParser("emu evaluate", add_help=False, allow_abbrev=False)
    only.add_argument("--suite", default=DEFAULT_SUITE)
    return only.parse_known_args(list(words))[0].suite


def parser(suite: Suite) -> argparse.ArgumentParser:
    """Options of the command, those of one suite among them."""
    from emu.evaluation.suites import SUITES

    width = max(map(len, SUITES))
    listed = "\n".join(f"  {one:<{width}}  {each.summary}" for one, each in SUITES.items())
    found = argparse.ArgumentParser(
        "emu evaluate",
        description=f"Measure a model, or a vision tokenizer.\n\nsuites:\n{listed}\n\nHelp for another suite's options: "
        "emu evaluate --suite NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("model", help="folder, repository or bundled name of what is measured, e.g. runs/shapes/model")
    found.add_argument(
        "--suite",
        metavar="NAME",
        default=DEFAULT_SUITE,
        help="what to measure; also a class path such as my_module.MySuite (default: %(default)s)",
    )
    found.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for <suite>.json, <suite>.png and metrics.json (default: above what is measured)",
    )
    suite.add_options(found)
    return found


def report_folder(measured: str) -> Path:
    """Where figures go when nothing is said: above what was measured, but never into a model's folder; here for hubs and bundled names."""
    if not Path(measured).exists():
        return Path.cwd()
    folder = Path(measured).resolve().parent
    while any((folder / name).is_file() for name in MODEL_FILES):
        folder = folder.parent
    return folder
