"""Skills and suites on oracles: true answers are right, broken ones are not, and models of other worlds are refused."""

import json

import numpy as np
import pytest

from emu.cli.evaluate import main
from emu.evaluation.calibration import TaskScore
from emu.evaluation.skills import SHAPES_SKILLS, VIDEO_SKILLS, iou, measure_skill
from emu.evaluation.statistics import Interval
from emu.evaluation.suites import Report
from emu.evaluation.suites.calibration import figures_of
from emu.evaluation.suites.worlds import SuiteOptions, trained_worlds
from emu.worlds import COMBINATIONS, HELD_OUT, MovingWorld, moving, shapes, standard_worlds
from emu.worlds.moving import path_number
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.training_data import WORLDS_FILE


def oracle(world):
    """Samples from the exact law that includes the held-out combinations."""
    variable = "clip" if isinstance(world, MovingWorld) else "picture"
    table = world.table(variable, "caption", full=True)

    def sample(task, captions, seed):
        rng = np.random.default_rng(seed)
        return np.array([rng.choice(targets, p=odds) for targets, odds in map(table.outcomes, captions)])

    return sample


@pytest.mark.parametrize("skill", SHAPES_SKILLS + VIDEO_SKILLS, ids=lambda skill: skill.name)
def test_the_truth_has_every_skill_and_chance_has_none(skill):
    world = standard_worlds(unseen_kinds="kinds" in skill.name)[skill.world]
    assert measure_skill(skill, world, oracle(world), 60).value == 1
    chance = oracle(world)
    shuffled = measure_skill(skill, world, lambda task, captions, seed: chance(task, np.roll(captions, 1), seed), 60)
    nothing = measure_skill(skill, world, lambda task, captions, seed: np.full(len(captions), -1), 60)
    assert nothing.value == 0
    if skill.name not in ("two objects: number", "legal path"):
        assert shuffled.value < 0.7


def test_a_ball_that_jumps_has_no_legal_path():
    world = moving()
    clips = world.draw(0, 30).values("clip")
    colour, places = world.paths_of(clips)
    places[:, 2] = (places[:, 2] + 8) % 16
    jumped = path_number(colour, places)
    skills = {skill.name: skill for skill in VIDEO_SKILLS}
    share = measure_skill(skills["legal path"], world, lambda task, captions, seed: jumped, 30)
    assert share.value == 0


def test_overlap_of_boxes():
    box = np.array([[0, 0, 7, 7]])
    assert iou(box, box)[0] == 1
    assert iou(box, np.array([[0, 4, 7, 11]]))[0] == pytest.approx(32 / 96)
    assert iou(box, np.array([[8, 8, 15, 15]]))[0] == 0
    assert iou(np.array([[5, 5, 2, 2]]), box)[0] == 0


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="30 are needed"):
        measure_skill(SHAPES_SKILLS[0], shapes(1), oracle(shapes(1)), 10)
    with pytest.raises(ValueError, match="200 are needed"):
        SuiteOptions(samples=10).check()
    with pytest.raises(ValueError, match="30 are needed"):
        SuiteOptions(documents=3).check()


def test_models_of_other_worlds_are_refused(tmp_path):
    tokenizer = fit_tokenizer(list(standard_worlds().values()))
    with pytest.raises(FileNotFoundError, match="emu fit --config shapes"):
        trained_worlds(tmp_path, tokenizer)
    table = {
        "size": 32,
        "unseen_kinds": False,
        "worlds": {name: world.fingerprint() for name, world in standard_worlds().items()},
        "tasks": {"one": ["text-to-image"], "two": ["image-to-text"], "moving": ["continuation"]},
    }
    (tmp_path / WORLDS_FILE).write_text(json.dumps(table))
    found = trained_worlds(tmp_path, tokenizer)
    assert {name: list(documents.tasks) for name, documents in found.items()} == table["tasks"]
    table["worlds"]["two"] = "0" * 16
    (tmp_path / WORLDS_FILE).write_text(json.dumps(table))
    with pytest.raises(ValueError, match="fingerprint 0000000000000000, this library makes"):
        trained_worlds(tmp_path, tokenizer)


def test_the_command_refuses_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="200 are needed"):
        main(["nowhere", "--samples", "3"])
    with pytest.raises(FileNotFoundError, match="no model at"):
        main([str(tmp_path / "nowhere")])


def test_the_figures_of_several_suites_come_together_in_one_file(tmp_path):
    half = Interval(0.51239, 0.4, 0.6, 30)
    scores = [
        TaskScore("one", "image-to-text", split, floor, exact=floor, model=half, excess=half)
        for split, floor in ((HELD_OUT, 2.56195), (COMBINATIONS, 0.0))
    ]
    about = {"world": "one", "task": "image-to-text", "attribute": "template", "guidance_scale": 1.0}
    tests = [{**about, "test": {"p_value": 0.25}}]
    files = Report({"tests": tests}, figures_of(scores, tests), picture=b"png").write(tmp_path, "calibration")
    assert [file.name for file in files] == ["calibration.json", "calibration.png", "metrics.json"]
    assert all(file.is_file() for file in files)
    Report({}, {"skill/single object": 0.5124, "iou/one": 0.5124}).write(tmp_path, "shapes")
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "excess/one/image-to-text": 0.5124,
        "excess/one/image-to-text/combinations": 0.5124,
        "iou/one": 0.5124,
        "p/one/image-to-text/template/1": 0.25,
        "share/one/image-to-text": 0.2,
        "skill/single object": 0.5124,
    }
