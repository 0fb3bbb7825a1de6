"""Adding a suite that knows nothing of worlds: one class, registered under a name or named by its class path."""

import json
from pathlib import Path

import pytest

from emu.cli.main import main
from emu.evaluation.suites import SUITES, Report, register


class PromptLengths:
    """How long the prompts of a folder are, in words."""

    summary = "how long the prompts of a folder are"

    def add_options(self, parser):
        parser.add_argument("--longest", type=int, default=4, help="words of a prompt that is not too long")

    def prepare(self, request):
        file = Path(request.model) / "prompts.txt"
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        return file.read_text().splitlines(), request.longest

    def run(self, subject, log):
        prompts, longest = subject
        lengths = [len(prompt.split()) for prompt in prompts]
        log(f"{len(prompts)} prompts")
        too_long = sum(length > longest for length in lengths)
        return Report(
            {"lengths": lengths, "too_long": too_long},
            {"prompts/mean": sum(lengths) / len(lengths)},
            exit_code=int(too_long > 0),
        )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "prompts.txt").write_text("a red circle\na blue square above a green cross\n")
    return tmp_path


def test_a_suite_from_one_file_is_listed_measures_and_leaves_again(folder, capsys):
    register("prompts", PromptLengths())
    try:
        words = ["evaluate", str(folder / "model"), "--suite", "prompts"]
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        listed = capsys.readouterr().out
        assert "prompts       how long the prompts of a folder are" in listed and "--longest" in listed
        assert main(words) == 1
        assert main([*words, "--longest", "7"]) == 0
        assert capsys.readouterr().out.splitlines()[:1] == ["2 prompts"]
        assert json.loads((folder / "prompts.json").read_text()) == {"lengths": [3, 7], "too_long": 0}
        assert json.loads((folder / "metrics.json").read_text()) == {"prompts/mean": 5.0}
        assert main(["evaluate", str(folder), "--suite", "prompts"]) == 2
    finally:
        SUITES.unregister("prompts")
    assert main(words) == 2
    assert "suite 'prompts' is not registered" in capsys.readouterr().err


def test_a_suite_is_also_named_by_its_class_path(folder):
    path = f"{PromptLengths.__module__}.PromptLengths"
    assert main(["evaluate", str(folder / "model"), "--suite", path, "--longest", "7"]) == 0
    assert json.loads((folder / "PromptLengths.json").read_text())["too_long"] == 0
