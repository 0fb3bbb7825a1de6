"""Several models and suites at once: one table, one page, what is left out and why, and differences item by item."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from emu.cli.evaluate_words import requests_of, suite_names
from emu.cli.main import main
from emu.evaluation.comparison_page import drawn_intervals
from emu.evaluation.figures import Figure
from emu.evaluation.measures import Measure, figures_of, mean_measure, share_measure
from emu.evaluation.statistics import Interval
from emu.evaluation.suites import SUITES, Report, Unsuited, register

PNG = b"\x89PNG tiny"


class Marks:
    """Marks of a model's folder."""

    summary = "marks <of> a folder"
    file = "marks.txt"

    def add_options(self, parser):
        parser.add_argument("--seed", type=int, default=3)
        parser.add_argument("--bonus", type=float, default=0.0)

    def prepare(self, request):
        file = Path(request.model) / self.file
        if not Path(request.model).is_dir():
            raise FileNotFoundError(f"no model at {request.model}")
        if not file.is_file():
            raise Unsuited(f"{file.name} is not there <yet>")
        return np.array(file.read_text().split(), float) + request.bonus, request.seed

    def run(self, subject, log):
        marks, seed = subject
        if np.isnan(marks).any():
            raise FloatingPointError("the marks hold NaN")
        log(f"{len(marks)} marks, seed {seed}")
        measures = {"marks": mean_measure(marks, ("marks", len(marks)))}
        figures = figures_of(measures) | {"seed": float(seed)}
        return Report({"seed": seed}, figures, PNG, measures=measures, gallery=[Figure("Marks", "a picture", PNG)])


class Grades(Marks):
    """The same of another file, with a seed of its own."""

    summary = "grades"
    file = "grades.txt"

    def add_options(self, parser):
        parser.add_argument("--seed", type=int, default=9)
        parser.add_argument("--bonus", type=float, default=0.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    hard = rng.normal(size=40)
    for name, gain in (("a", 0.0), ("b", 0.2)):
        (tmp_path / name).mkdir()
        marks = hard + gain + 0.1 * rng.normal(size=40)
        (tmp_path / name / "marks.txt").write_text(" ".join(map(str, marks)))
    (tmp_path / "a" / "grades.txt").write_text("1 " * 40)
    for name, suite in (("marks", Marks()), ("grades", Grades())):
        register(name, suite)
    yield tmp_path
    for name in ("marks", "grades"):
        SUITES.unregister(name)


def test_models_stand_side_by_side_with_intervals_differences_and_reasons(folder, capsys):
    assert main(["evaluate", "a", "b", "--suite", "marks,grades"]) == 0
    table = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert table["models"] == ["a", "b"]
    marks = table["suites"]["marks"]["figures"]["marks"]
    low, high = marks["b"]["interval"]
    assert low < marks["b"]["value"] < high and high - low > 0.4
    difference, least, most = marks["b"]["difference"]
    # Paired: what is hard for both cancels, and the interval is a fraction of either model's own.
    assert 0.1 < least < difference < most < 0.3 and "difference" not in marks["a"]
    assert table["suites"]["grades"]["left_out"] == {"b": "grades.txt is not there <yet>"}
    files = {str(file.relative_to(folder / "evaluation")) for file in (folder / "evaluation").rglob("[!.]*.*")}
    assert {"evaluation.html", "a/marks.json", "a/marks.png", "a/grades.json", "b/metrics.json"} <= files
    said = capsys.readouterr().out
    assert "b, grades: left out: grades.txt is not there <yet>" in said and "  40 marks, seed 3" in said


def test_the_page_is_one_file_that_fetches_nothing_and_escapes_what_it_shows(folder):
    main(["evaluate", "a", "b", "--suite", "marks,grades", "--output", "out"])
    page = (folder / "out" / "evaluation.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)
    assert "marks &lt;of&gt; a folder" in page and "not there &lt;yet&gt;" in page and "<of>" not in page
    assert page.count("data:image/png;base64,") == 6 and page.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page and re.search(r"<b>\+0\.\d+ <span", page)
    assert page.count("<h2") == 2 + 6 + 1  # suites, pictures, what was left out


def test_options_reach_every_suite_that_has_them_and_defaults_stay_each_suites_own(folder):
    suites = {"marks": SUITES["marks"], "grades": SUITES["grades"]}
    plain = requests_of(["a", "--suite", "marks,grades"], suites)
    assert (plain["marks"].seed, plain["grades"].seed) == (3, 9)
    given = requests_of(["a", "b", "--seed", "5", "--suite", "marks,grades"], suites)
    assert (given["marks"].seed, given["grades"].seed, given["marks"].model) == (5, 5, ["a", "b"])


def test_a_suite_that_breaks_takes_nothing_from_the_others(folder, capsys):
    (folder / "b" / "marks.txt").write_text("nan " * 40)
    assert main(["evaluate", "a", "b", "--suite", "marks"]) == 1
    table = json.loads((folder / "evaluation" / "evaluation.json").read_text())["suites"]["marks"]
    assert table["left_out"] == {"b": "failed: the marks hold NaN"} and list(table["figures"]["marks"]) == ["a"]


def test_what_cannot_be_compared_is_refused_before_any_work(folder, capsys):
    (folder / "c").mkdir()
    for words, message in (
        (["a", "nowhere"], "no model at nowhere"),
        (["a", "a"], "name each once"),
        (["c", "--suite", "marks,grades"], "none of the suites is for any of the models:\n  - c, marks: marks.txt"),
        (["a", "--suite", "marks,marks"], "expected each suite once"),
        (["a", "--suite", "all,marks"], "or all alone"),
        (["a", "--suite", "marks,none"], "suite 'none' is not registered"),
    ):
        assert main(["evaluate", *words, *([] if "--suite" in words else ["--suite", "marks"])]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "evaluation" / "evaluation.json").exists()


def test_all_are_all_that_are_registered():
    assert suite_names(["model", "--suite", "all"]) == list(SUITES)
    assert {"vqa", "likelihood", "memorisation", "calibration"} <= set(SUITES)


def test_figures_of_other_items_have_no_difference():
    ours, theirs = (mean_measure(np.arange(40.0), items) for items in ("these", "those"))
    assert ours.minus(theirs) is None and ours.minus(Measure(ours.interval)) is None
    assert ours.minus(mean_measure(np.arange(40.0) - 1, "these")).value == 1
    few = share_measure(np.ones(20, bool), "few")
    assert few.minus(few) is None  # too few for an interval of differences


def test_intervals_are_drawn_on_one_scale():
    drawn = drawn_intervals([Interval(0.5, 0.4, 0.6, 30), None, Interval(0.9, 0.8, 1.0, 30)])
    ends = [float(end) for end in re.findall(r'x[12]="([\d.]+)"', drawn)]
    assert ends == sorted(ends) and ends[-1] == 146 and drawn.count("<g") == 2
    assert drawn_intervals([None]) == drawn_intervals([Interval(0.0, -np.inf, np.inf, 9)]) == ""
