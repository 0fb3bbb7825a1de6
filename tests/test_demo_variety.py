"""How varied samples are, and how the report shows every task."""

import pytest
import torch

from emu.demo.digits import draw_stills, load_digits
from emu.demo.judge import spread, variety, variety_of_answers
from emu.demo.report import TASKS, goal_mark, goal_rows
from emu.demo.run import GOALS, LONG_GOALS, DemoPlan


@pytest.fixture(scope="module")
def real():
    _, held_out = load_digits()
    return draw_stills(held_out.images), held_out.labels


def test_other_real_samples_are_as_varied_as_real_ones(real):
    pictures, labels = real
    half = torch.arange(len(labels)) % 2 == 0
    assert variety(pictures[half], labels[half], pictures[~half], labels[~half]) == pytest.approx(1.0, abs=0.1)


def test_one_picture_again_and_again_has_no_variety(real):
    pictures, labels = real
    firsts = torch.stack([pictures[labels == digit][0] for digit in range(10)])
    assert variety(firsts.repeat(5, 1, 1), torch.arange(10).repeat(5), pictures, labels) == 0.0


def test_half_the_variance_is_a_share_of_root_one_half(real):
    pictures, labels = real
    rows = pictures.float()
    means = torch.stack([rows[labels == digit].mean(dim=0) for digit in range(10)])[labels]
    assert spread(rows, labels) == pytest.approx(2**0.5 * spread((means + (rows - means) / 2**0.5), labels), rel=0.1)


def test_where_a_digit_stands_is_no_variety(real):
    pictures, _ = real
    moved = torch.stack([pictures[0].roll(shift, dims=1) for shift in range(-3, 4)])
    assert spread(moved, torch.zeros(7, dtype=torch.int64)) == 0.0


def test_a_single_sample_of_each_class_says_nothing(real):
    pictures, labels = real
    assert variety(pictures[:3], torch.arange(3), pictures, labels) is None


def test_answers_are_varied_when_all_that_should_occur_do():
    assert variety_of_answers(["one", "two"] * 5, ["two", "one"] * 5) == 1.0
    assert variety_of_answers(["one"] * 10, ["one", "two"] * 5) == 0.5


def test_every_task_has_goals_and_is_shown_with_them():
    shown = [name for _, names in TASKS.values() for name in names]
    assert set(shown) == set(GOALS) == set(LONG_GOALS)
    page = goal_rows(dict.fromkeys(GOALS, 0.5) | {"video_variety": 0.25}, GOALS, ())
    assert all(title in page for title in TASKS) and "0.25" in page


def test_a_goal_out_of_reach_of_a_short_run_is_shown_as_missed_and_is_no_failure():
    plan = DemoPlan()
    metrics = dict(plan.goals) | dict.fromkeys(plan.beyond, 0.0)
    assert plan.beyond and plan.missed(metrics) == []
    assert goal_mark(0.0, 0.85, True) == "short of it; emu demo --long reaches it"
    assert plan.three_times_as_long().missed(dict(LONG_GOALS) | dict.fromkeys(plan.beyond, 0.0)) == list(plan.beyond)
