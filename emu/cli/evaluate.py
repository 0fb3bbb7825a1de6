"""`emu evaluate`: evaluate trained models where the right answers are known exactly, or a vision tokenizer on pictures and clips.

emu evaluate digits pictures --suite all
emu evaluate runs/shapes/model --suite calibration
emu evaluate runs/shapes/model --suite shapes --guidance-scale 2
emu evaluate runs/vision-tokenizer/model --suite tokenizer --images photographs
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu.cli.evaluate_words import named_suites, parser, requests_of, suite_names

if TYPE_CHECKING:
    from emu.evaluation.suites import Report, Suite

TOKENIZER = "tokenizer"
MODEL_FILES = ("config.json", "multimodal_tokenizer.json", "emu.json")
"""A folder that holds one of these is a model's, and nothing else is written into it."""
COMPARED, PAGE = Path("evaluation"), "evaluation.html"
"""Where what is said of several models or suites goes when nothing is said, and the page."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write.

    Returns:
        The exit code of the suites' reports: 1 where something is wrong with what was measured (bits below what is possible, files that
        cannot be read) or a suite failed, else 0.

    Raises:
        FileNotFoundError, ValueError: an unknown suite, or what no suite can measure; before any work.
    """
    words = in_todays_form(arguments)
    names = suite_names(words)
    from emu.demo.examples_by_name import register_examples
    from emu.evaluation.suites import find_suite

    register_examples()
    suites = {name: find_suite(name) for name in names}
    requests = requests_of(words, suites)
    if named_suites(requests[names[0]].suite) != names:
        parser(suites).error("write the option --suite in full")
    models = requests[names[0]].model
    if len(set(models)) < len(models):
        raise ValueError(f"the models are {', '.join(models)}; name each once")
    if len(names) == len(models) == 1:
        return measure(names[0], suites[names[0]], of_model(requests[names[0]], models[0]))
    return measure_several(models, suites, requests)


def of_model(request: argparse.Namespace, model: str) -> argparse.Namespace:
    """The request for one of its models."""
    return argparse.Namespace(**vars(request) | {"model": model})


def measure(name: str, suite: Suite, request: argparse.Namespace) -> int:
    """One suite of one model: its files."""
    from emu_tokenizers.files import holding

    subject = suite.prepare(request)
    folder = request.output or report_folder(request.model)
    report = suite.run(subject, print)
    with holding(folder, "emu evaluate"):  # metrics.json is read and written again
        *most, last = map(str, report.write(folder, name.rpartition(".")[2]))
    print(f"written to {', '.join(most)} and {last}" if most else f"written to {last}")
    return report.exit_code


def measure_several(
    models: Sequence[str], suites: Mapping[str, Suite], requests: Mapping[str, argparse.Namespace]
) -> int:
    """Several models or suites: the files of each, a table of all, and a page."""
    from emu.evaluation.compared_models import compare
    from emu.evaluation.comparison_page import comparison_page
    from emu_tokenizers.files import holding, write_file

    folder = next(iter(requests.values())).output or COMPARED
    folders = {model: folder / name for model, name in folder_names(models).items()}

    def prepare(model: str, name: str) -> Any:
        return suites[name].prepare(of_model(requests[name], model))

    def finished(model: str, name: str, report: Report) -> None:
        report.write(folders[model], name.rpartition(".")[2])

    with holding(folder, "emu evaluate"):
        found = compare(models, suites, prepare, print, finished)
        table = found.write(folder)
        write_file(folder / PAGE, comparison_page(found).encode())
    print(f"written to {table} and {folder / PAGE}")
    return found.exit_code


def folder_names(models: Sequence[str]) -> dict[str, str]:
    """Return a folder name for each model; a number is added to names that would coincide, such as a/b and a-b."""
    found: dict[str, str] = {}
    for model in models:
        name = "-".join(Path(model).parts).strip("-/.") or "model"
        others = (f"{name}-{number}" for number in itertools.count(2))
        found[model] = next(one for one in itertools.chain([name], others) if one not in found.values())
    return found


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


def report_folder(measured: str) -> Path:
    """Where figures go when nothing is said: above what was measured, but never into a model's folder; here for hubs and bundled names."""
    if not Path(measured).exists():
        return Path.cwd()
    folder = Path(measured).resolve().parent
    while folder != folder.parent and any((folder / name).is_file() for name in MODEL_FILES):
        folder = folder.parent
    return folder
