"""A job: stages one after another, resumable at any place, checked together before the first starts."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from lightning.pytorch import Callback

from emu.cli.fit import fit
from emu.cli.main import main
from emu.training.job import Job
from emu.training.job_checks import one_process_problems
from emu.training.job_recipe import read_job
from tests.training_toys import write_recipe


class Kill(Callback):
    """Sends the process a signal in the N-th step that it makes, if it was asked to."""

    at, number = None, signal.SIGKILL

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if Kill.at is not None:
            Kill.at -= 1
            if not Kill.at:
                os.kill(os.getpid(), Kill.number)


class Copy:
    """A stage of one's own: writes a text."""

    def __init__(self, text: object, fail: bool = False):
        self.text, self.fail = str(text), fail

    def run(self, folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        (folder / "text").write_text(self.text)
        return int(self.fail)


class Steps:
    """A plan that counts how often it was made."""

    made, data = 0, "some"

    def __init__(self, budget: int):
        if budget > 1000:
            raise ValueError(f"budget is {budget}; expected 1000 or less")
        self.budget = budget

    @classmethod
    def examples(cls):
        return [{"steps": steps, "table": {"steps": steps, "size": 2}} for steps in (1, 100)]

    def state(self):
        return Steps.data

    def make(self):
        Steps.made += 1
        steps = 2 * self.budget
        return {"steps": steps, "table": {"steps": steps, "size": 2}}, [f"{steps} steps, two for each minute"]


class Small:
    """A stage that takes few steps."""

    def __init__(self, steps: int):
        if steps > 50:
            raise ValueError(f"steps is {steps}; expected 50 or less")

    def run(self, folder: Path) -> int:
        return 0


def write_job(folder, **changes):
    write_recipe(folder)
    callbacks = [{"class_path": f"{__name__}.Kill"}]
    table = {
        "budget": 3,
        "plan": {"class_path": f"{__name__}.Steps", "init_args": {"budget": "${budget}"}},
        "stages": [
            {"name": "note", "command": f"{__name__}.Copy", "options": {"text": "steps: ${plan.steps}"}},
            {
                "name": "first",
                "command": "fit",
                "config": str(folder / "toy.yaml"),
                "options": {
                    "trainer": {"max_steps": "${plan.steps}", "callbacks": callbacks},
                    "checkpoint": {"every_n_steps": 2},
                },
            },
            {
                "name": "second",
                "command": "fit",
                "config": str(folder / "toy.yaml"),
                "options": {
                    "trainer": {"max_steps": 4, "callbacks": callbacks},
                    "model": {"config": None, "pretrained": "${folders.first}/model"},
                    "checkpoint": {"every_n_steps": 2},
                },
            },
        ],
    }
    table |= changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


def words(path, run, *more):
    return ["--config", str(path), "--trainer.default_root_dir", str(run), *map(str, more)]


def content(folder):
    """Digests of everything that a job is for: what is compared byte for byte."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".safetensors", "")]
    kept = [path for path in kept if path.name != ".emu.lock" and "checkpoints" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures_of_curves():
    """They take a quarter of the time of such short stages; tests/test_training_fit.py has them."""
    with patch("emu.training.curves.plot_panels"):
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    path = write_job(folder)
    assert fit(words(path, folder / "run")) == 0
    return folder


def test_stages_run_in_their_folders_and_the_result_is_in_model(done):
    run = done / "run"
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"1-note", "2-first", "3-second", "model"}
    assert (run / "1-note" / "text").read_text() == "steps: 6"
    assert (run / "model" / "model.safetensors").is_file() and not (run / "3-second" / "model").exists()
    table = json.loads((run / "job.json").read_text())
    assert table["finished"] == [0, 0, 0]
    assert table["stages"][2]["options"]["model"]["pretrained"] == "RUN/2-first/model"


def test_a_finished_job_has_nothing_to_do(done):
    before, made = content(done / "run"), Steps.made
    assert fit(words(done / "job.yaml", done / "run")) == 0
    assert content(done / "run") == before and Steps.made == made


def test_a_changed_option_is_refused_by_name(done):
    with pytest.raises(ValueError, match=r"trainer\.max_steps is 5 and was 4 in stage second"):
        fit(words(done / "job.yaml", done / "run", "--second.trainer.max_steps", 5))
    with pytest.raises(ValueError, match=r"init_args\.budget is 7 and was 3 in this folder's plan"):
        fit(words(done / "job.yaml", done / "run", "--budget", 7))


def test_everything_wrong_with_any_stage_is_told_before_the_first_starts(tmp_path):
    path = write_job(tmp_path)
    made = Steps.made
    wrong = ("--first.trainer.max_stepz", 3, "--second.model.optimizer.lr", "fast", "--note.txt", "a", "--budget", 1001)
    with pytest.raises(ValueError) as error:
        fit(words(path, tmp_path / "run", *wrong, "--note.text", "${plan.stepz}", "--frist.trainer.max_steps", 3))
    told = str(error.value)
    for part in ("stage note", "plan.stepz", "stage first", "max_stepz", "stage second", "model.optimizer.lr", "frist"):
        assert part in told
    assert "budget is 1001" in told
    assert Steps.made == made and [path.name for path in (tmp_path / "run").iterdir()] == [".emu.lock"]


def test_an_option_that_is_wrong_for_some_plans_alone_is_left_to_the_plan(tmp_path):
    stages = [{"name": "a", "command": f"{__name__}.Small", "options": {"steps": "${plan.steps}"}}]
    path = write_job(tmp_path, stages=stages)
    made = Steps.made
    assert fit(words(path, tmp_path / "run")) == 0 and Steps.made == made + 1
    with pytest.raises(ValueError, match="steps is 100; expected 50 or less"):
        fit(words(path, tmp_path / "more", "--budget", 50))
    assert not (tmp_path / "more" / "plan.json").exists()


def test_options_in_a_table_that_the_plan_makes_are_set(tmp_path):
    stages = [{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "${plan.table}"}}]
    path = write_job(tmp_path, stages=stages)
    assert fit(words(path, tmp_path / "run", "--a.text.steps", 7, "--a.text.more", "${plan.steps}")) == 0
    assert (tmp_path / "run" / "1-a" / "text").read_text() == "{'steps': 7, 'size': 2, 'more': 6}"
    with pytest.raises(ValueError, match="text.steps is 8 and was 7 in stage a"):
        fit(words(path, tmp_path / "run", "--a.text.steps", 8, "--a.text.more", 6))
    with pytest.raises(ValueError, match="text is 'b', in which steps cannot be set"):
        fit(words(path, tmp_path / "other", "--a.text", "b", "--a.text.steps", 8))


def test_data_that_changed_between_a_stop_and_its_resume_is_told(tmp_path, monkeypatch, capsys):
    stages = [{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "${plan.steps}"}}]
    path = write_job(tmp_path, stages=stages)
    assert fit(words(path, tmp_path / "run")) == 0
    monkeypatch.setattr(Steps, "data", "other")
    assert fit(words(path, tmp_path / "run")) == 0
    assert "the data has changed since plan.json was made of it; this job goes on" in capsys.readouterr().err
    table = json.loads((tmp_path / "run" / "job.json").read_text())
    (tmp_path / "run" / "job.json").write_text(json.dumps({**table, "finished": []}))
    with pytest.raises(ValueError, match="has changed since plan.json was made of it; put it back, start anew"):
        fit(words(path, tmp_path / "run"))
    assert fit(words(path, tmp_path / "run", "--overwrite", "true")) == 0


def test_a_refused_job_overwrites_nothing(tmp_path, done):
    path = write_job(tmp_path, stages=[{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "x"}}])
    fit(words(path, tmp_path / "run"))
    with pytest.raises(ValueError, match="txt is not an option"):
        fit(words(path, tmp_path / "run", "--a.txt", "y", "--overwrite", "true"))
    assert (tmp_path / "run" / "1-a" / "text").read_text() == "x" and (tmp_path / "run" / "job.json").is_file()


def test_folders_and_files_of_others_are_refused(tmp_path):
    path = write_job(tmp_path, stages=[{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "x"}}])
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "mine").write_text("kept")
    (tmp_path / "run" / "mine.partial").write_text("kept")
    for more in ((), ("--overwrite", "true")):
        with pytest.raises(ValueError, match="model is there, and is not of a job; name another folder"):
            fit(words(path, tmp_path / "run", *more))
    assert (tmp_path / "run" / "model" / "mine").is_file() and (tmp_path / "run" / "mine.partial").is_file()
    for name, told in (("job.json", "is not of a job"), ("plan.json", "is not the plan of a job")):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text("{}")
        with pytest.raises(ValueError, match=told):
            fit(words(path, tmp_path / name[:3]))


@pytest.mark.parametrize(
    ("words_of", "told"),
    [
        (("--frist.trainer.max_steps", 3), "--frist.trainer.max_steps is an option of neither the job nor a stage"),
        (("--first.trainer.default_root_dir", "x"), "--first.trainer.default_root_dir is set by the job"),
        (("oops",), "'oops' belongs to no option"),
    ],
)
def test_words_that_belong_to_nothing_are_refused(tmp_path, words_of, told):
    path = write_job(tmp_path)
    with pytest.raises(ValueError, match=told):
        fit(words(path, tmp_path / "run", *words_of))


def test_names_of_stages_are_safe_and_occur_once(tmp_path):
    stages = [{"name": name, "command": f"{__name__}.Copy", "options": {"text": ""}} for name in ("../x", "a", "a")]
    path = write_job(tmp_path, stages=stages)
    with pytest.raises(ValueError, match=r"(?s)'\.\./x' cannot be a folder's name.*'a' occurs twice"):
        fit(words(path, tmp_path / "run"))


def test_what_comes_out_of_the_environment_is_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("EMU_TEST_SECRET", "hush")
    stages = [{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "${oc.env:EMU_TEST_SECRET}"}}]
    path = write_job(tmp_path, stages=stages)
    assert fit(words(path, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "1-a" / "text").read_text() == "hush"
    assert "hush" not in (tmp_path / "run" / "job.json").read_text()


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_one_of_several_processes_is_refused_before_it_works(tmp_path, monkeypatch, names):
    path = write_job(tmp_path)
    for name, value in zip(names, "02", strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="this is one of 2 processes, and a job runs in one"):
        fit(words(path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_settings_of_several_processes_are_problems_and_auto_is_one(tmp_path):
    for settings in ({"devices": 2}, {"devices": [0, 1]}, {"devices": -1}, {"num_nodes": 2}):
        (problem,) = one_process_problems(settings)
        assert problem.path == ("trainer", *settings)
    for settings in ({}, {"devices": 1}, {"devices": [3]}, {"devices": "auto", "num_nodes": 1}):
        assert not one_process_problems(settings)
    recipe = read_job(words(write_job(tmp_path), tmp_path / "run", "--second.trainer.devices", "auto"))
    assert "--trainer.devices=1" in Job(recipe)._words(recipe.stages[2])


def test_a_stage_of_several_processes_is_refused_with_its_place(tmp_path):
    path = write_job(tmp_path)
    with pytest.raises(
        ValueError, match=r"stage second: command line: trainer\.devices is 2; a job runs in one process"
    ):
        fit(words(path, tmp_path / "run", "--second.trainer.devices", 2))


def test_a_stage_that_left_bad_input_out_gives_the_exit_code_one(tmp_path):
    stages = [{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "x", "fail": True}}]
    path = write_job(tmp_path, stages=stages)
    assert fit(words(path, tmp_path / "run")) == 1
    assert fit(words(path, tmp_path / "run")) == 1  # also when there is nothing left to do


def test_recipes_separated_by_commas_are_a_job(tmp_path):
    job = read_job(["--config", "shapes_tokenizer,shapes", "--shapes.trainer.max_steps", "3"])
    assert [(stage.folder, stage.command) for stage in job.stages] == [
        ("1-shapes_tokenizer", "fit-tokenizer"),
        ("2-shapes", "fit"),
    ]
    assert job.stages[1].written.tree["trainer"]["max_steps"] == 3 and job.name == "shapes_tokenizer+shapes"
    assert read_job(["--config", "shapes"]) is None


def test_two_jobs_in_one_folder_are_refused(tmp_path, done):
    from emu_tokenizers.files import FolderInUse, holding

    with holding(tmp_path / "run", "another"), pytest.raises(FolderInUse):
        fit(words(done / "job.yaml", tmp_path / "run"))


def test_overwrite_starts_anew(tmp_path):
    path = write_job(tmp_path, stages=[{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "x"}}])
    fit(words(path, tmp_path / "run"))
    (tmp_path / "run" / "mine.txt").write_text("kept")
    fit(words(path, tmp_path / "run", "--a.text", "y", "--overwrite", "true"))
    assert (tmp_path / "run" / "1-a" / "text").read_text() == "y"
    assert (tmp_path / "run" / "mine.txt").read_text() == "kept"


def test_overwrite_removes_nothing_outside_of_the_run(tmp_path):
    path = write_job(tmp_path, stages=[{"name": "a", "command": f"{__name__}.Copy", "options": {"text": "x"}}])
    fit(words(path, tmp_path / "run"))
    (tmp_path / "beside.txt").write_text("kept")
    table = json.loads((tmp_path / "run" / "job.json").read_text())
    table["stages"][0]["folder"] = ".."
    (tmp_path / "run" / "job.json").write_text(json.dumps(table))
    fit(words(path, tmp_path / "run", "--overwrite", "true"))
    assert (tmp_path / "beside.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_a_signal_stops_the_job_after_saving_and_the_same_command_goes_on(
    tmp_path, done, monkeypatch, capsys, number, code
):
    monkeypatch.setattr(Kill, "number", number)
    monkeypatch.setattr(Kill, "at", 3)
    assert main(["fit", *words(done / "job.yaml", tmp_path / "run")]) == code
    assert "stopped: in stage 2-first; the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "run" / "2-first" / "checkpoints" / "step=00000003.safetensors").is_file()
    assert fit(words(done / "job.yaml", tmp_path / "run")) == 0
    assert content(tmp_path / "run") == content(done / "run")


def test_what_a_kill_left_half_written_is_swept(tmp_path, done):
    for folder in ("model.partial-abc", "2-first/model.partial-abc"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    (tmp_path / "run" / "job.json.12.partial").touch()
    assert fit(words(done / "job.yaml", tmp_path / "run")) == 0
    assert not list((tmp_path / "run").rglob("*.partial*"))


def killed(path, run, at):
    Kill.at = at
    Job(read_job(words(path, run))).run()


def kill_at(path, run, at):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(path, run, at))
    process.start()
    process.join(120)
    process.kill()
    return process.exitcode


@pytest.mark.parametrize("steps", [[3], pytest.param([1, 2, 2, 1, 3, 1, 2, 4, 1, 2, 3, 1], marks=pytest.mark.slow)])
def test_a_job_that_was_killed_goes_on_to_the_same_bytes(tmp_path, done, steps):
    for at in steps:
        assert kill_at(done / "job.yaml", tmp_path / "run", at) in (-signal.SIGKILL, 0)
    assert fit(words(done / "job.yaml", tmp_path / "run")) == 0
    assert content(tmp_path / "run") == content(done / "run")
