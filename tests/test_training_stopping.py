"""A run that is stopped at any batch goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from emu.cli.main import run as run_command
from emu.stopping import Stopped
from emu.training.checkpoint_file import read_checkpoint
from emu.training.checkpoints import list_checkpoints
from emu.training.curves import read_curves
from tests.training_toys import TIMED, ToyData, run, same, write_recipe

ACCUMULATED, STEPS_PER_EPOCH, STEPS = 3, 2, 5
BATCHES = range(ACCUMULATED * STEPS)
FEW = {4}
"""Batches at which every test run stops, one inside a step; the rest is slow."""
WORDS = (
    "--trainer.accumulate_grad_batches", ACCUMULATED, "--trainer.max_steps", STEPS, "--data.steps_per_epoch", STEPS_PER_EPOCH,
    "--model.optimizer.total_steps", STEPS, "--checkpoint.every_n_steps", 2, "--trainer.enable_progress_bar", "false", "--export", "null",
)  # fmt: skip


class Signal(Callback):
    """Sends this process a signal while a batch is trained on, or in the middle of a validation."""

    def __init__(self, number: int, batch: int, validating: bool = False):
        self.number, self.batch, self.validating = number, batch, validating

    def on_after_backward(self, trainer, pl_module):
        if not self.validating and trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, *_):
        if self.validating and trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


def stopped(recipe, number, batch, validating=False, words=WORDS):
    """Run until the signal; returns what ended it."""
    sender = [
        "--trainer.callbacks", f"{__name__}.Signal", "--trainer.callbacks.number", int(number),
        "--trainer.callbacks.batch", batch, "--trainer.callbacks.validating", str(validating).lower(),
    ]  # fmt: skip
    with pytest.raises(Stopped) as end:
        run(recipe, *words, *sender)
    return end.value


def outcome(folder):
    """Everything a run leaves, times apart."""
    content = read_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])
    kept = {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "emu", "position")}
    rows = read_curves(folder / "metrics.csv")
    return kept, {step: {k: v for k, v in row.items() if k not in TIMED} for step, row in rows.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(write_recipe(folder), *WORDS)
    return outcome(folder / "run")


def check_resumed(tmp_path, straight):
    run(tmp_path / "toy.yaml", *WORDS, "--ckpt_path", "last")
    kept, rows = outcome(tmp_path / "run")
    for part, expected in straight[0].items():
        assert same(kept[part], expected), part
    assert rows == straight[1]


@pytest.mark.parametrize("batch", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in BATCHES[:-1]])
def test_a_signal_at_any_batch_saves_the_step_before_it_and_costs_nothing(tmp_path, straight, batch):
    number = (signal.SIGINT, signal.SIGTERM)[batch % 2]
    end = stopped(write_recipe(tmp_path), number, batch)
    assert end.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    step = (batch + 1) // ACCUMULATED
    saved = [step for step, _ in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved[-1:] == ([step] if step else [])
    assert f"saved at step {step}" in str(end) if step else "no step" in str(end)
    check_resumed(tmp_path, straight)


def test_a_signal_in_a_validation_does_not_lose_it(tmp_path, straight):
    stopped(write_recipe(tmp_path), signal.SIGINT, ACCUMULATED * STEPS_PER_EPOCH - 1, validating=True)
    check_resumed(tmp_path, straight)


class Twice(Callback):
    def on_after_backward(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


class Preparing(ToyData):
    """A stop while data is prepared."""

    def prepare_data(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_before_the_first_step_ends_at_once(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    assert run_command("emu fit", lambda: run(recipe, "--data.class_path", f"{__name__}.Preparing") and 0) == 143
    assert "emu fit: stopped: nothing was saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_a_second_time_does_not_wait(tmp_path):
    with pytest.raises(Stopped, match="nothing was saved") as end:
        run(write_recipe(tmp_path), *WORDS, "--trainer.callbacks", f"{__name__}.Twice")
    assert end.value.code == 130 and not list_checkpoints(tmp_path / "run" / "checkpoints")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_the_folder_is_free_again_after_a_stop(tmp_path):
    stopped(write_recipe(tmp_path), signal.SIGTERM, 4)
    run(tmp_path / "toy.yaml", *WORDS, "--overwrite", "true", "--trainer.max_steps", 1)
    assert not list(Path(tmp_path / "run").rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_itself_ends_with_the_code_that_schedulers_look_at(tmp_path, straight, number, code):
    recipe, words = (
        write_recipe(tmp_path),
        [*map(str, WORDS), "--trainer.max_steps", "100000", "--model.optimizer.total_steps", "9"],
    )
    path = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "emu.cli.main", "fit", "--config", str(recipe), *words]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        while not list_checkpoints(tmp_path / "run" / "checkpoints") and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == code
    assert "saved at step" in said and "--ckpt_path last" in said and "Traceback" not in said
    assert run(recipe, *words[:-4], "--trainer.max_steps", 1, "--ckpt_path", "last").trainer.global_step > 1
