"""What training promises when things go wrong: kills, gradients that are not finite, more processes."""

import multiprocessing
import os
import re
import signal
import socket
import time
from functools import partial

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback

from emu.model import EmuForCausalLM
from emu.stopping import Stopped
from emu.training import lost_ranks, module
from emu.training.checkpoint_file import read_checkpoint
from emu.training.checkpoints import list_checkpoints
from emu.training.curves import read_curves
from tests.training_toys import TIMED, run, same, write_recipe


class Poison(Callback):
    """Makes the gradients of some steps not finite, and remembers the weights around them."""

    def __init__(self, steps: list[int]):
        self.steps = steps
        self.weights = {}

    def on_after_backward(self, trainer, pl_module):
        self.weights[trainer.global_step] = pl_module.model.lm_head.weight.detach().clone()
        if trainer.global_step in self.steps:
            next(pl_module.parameters()).grad[0, 0] = float("nan")


STILL = ("--model.config.residual_dropout", 0)
"""Processes draw dropout of their own."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A whole run of one process without dropout, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    return run(write_recipe(folder), *STILL), folder / "run"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A whole run, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    return run(write_recipe(folder)), folder / "run"


def poison(steps):
    return ["--trainer.callbacks", f"{__name__}.Poison", "--trainer.callbacks.steps", str(steps)]


def in_processes(function, *arguments, count=1):
    """Run a function in forked processes, with its rank as first argument; returns their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=(rank, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    return [process.exitcode for process in processes]


@pytest.mark.filterwarnings("ignore:step")
def test_a_step_that_is_not_finite_changes_nothing_but_is_counted(tmp_path):
    module = run(write_recipe(tmp_path), *poison([2, 5]), "--trainer.max_steps", 7)
    weights = next(callback for callback in module.trainer.callbacks if isinstance(callback, Poison)).weights
    unchanged = [step for step in range(6) if torch.equal(weights[step], weights[step + 1])]
    assert unchanged == [2, 5] and module.gradients.num_skipped == 2
    curves = read_curves(tmp_path / "run" / "metrics.csv")
    assert [int(curves[step]["train/skipped_steps"]) for step in range(1, 8)] == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.filterwarnings("ignore:step")
def test_too_many_steps_that_are_not_finite_end_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step 4"):
        run(write_recipe(tmp_path), *poison([0, 2, 3, 4, 5]), "--model.max_skipped_steps", 3)


def killed_while_saving(rank, recipe):
    write = safetensors.torch.save_file

    def save_half(tensors, path, metadata):
        write(tensors, path, metadata)
        if "step=00000006" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = save_half
    run(recipe, "--checkpoint.every_n_steps", 3)


def test_a_kill_in_the_middle_of_saving_costs_nothing_but_the_steps_since(tmp_path, straight):
    recipe = write_recipe(tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    assert in_processes(killed_while_saving, recipe) == [-signal.SIGKILL]
    assert [step for step, _ in list_checkpoints(folder)] == [3]
    assert len(list(folder.glob("step=00000006.safetensors.*.partial"))) == 1
    resumed = run(recipe, "--ckpt_path", "last")
    assert not list(folder.glob("*.partial"))
    assert same(resumed.model.state_dict(), straight[0].model.state_dict())
    ours, theirs = (read_curves(path / "metrics.csv") for path in (tmp_path / "run", straight[1]))
    assert {step: row["train/loss"] for step, row in ours.items() if "train/loss" in row} == {
        step: row["train/loss"] for step, row in theirs.items() if "train/loss" in row
    }


class Terminate(Callback):
    """Sends this process a SIGTERM in the middle of a step."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_termination_signal_saves_the_step_and_ends_the_run(tmp_path, straight):
    recipe = write_recipe(tmp_path)
    with pytest.raises(Stopped, match="saved at step 4; go on with --ckpt_path last") as ended:
        run(recipe, "--trainer.callbacks", f"{__name__}.Terminate")
    assert ended.value.code == 143
    assert [step for step, _ in list_checkpoints(tmp_path / "run" / "checkpoints")] == [4]
    resumed = run(recipe, "--ckpt_path", "last")
    assert same(resumed.model.state_dict(), straight[0].model.state_dict())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_of_two(rank, recipe, port, words):
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in settings.items()})
    run(recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--model.config.residual_dropout", 0, *words)


def test_two_processes_train_as_one(tmp_path, alone):
    recipe = write_recipe(tmp_path)
    assert in_processes(one_of_two, recipe, free_port(), (), count=2) == [0, 0]
    ours, theirs = (read_curves(path / "metrics.csv") for path in (tmp_path / "run", alone[1]))
    assert list(ours) == list(theirs)
    for step, row in theirs.items():
        for name in row.keys() - {*TIMED, "train/row_fill"}:
            assert ours[step][name] == pytest.approx(row[name], rel=2e-4), (step, name)
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "step=00000012.safetensors")["state_dict"]
    for name, weight in alone[0].state_dict().items():
        assert torch.allclose(saved[name], weight, atol=1e-4), name


def sharded_over_two(rank, recipe, port, words):
    sharding = (
        '{"class_path": "ModelParallelStrategy", "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, '
    )
    sharding += '"save_distributed_checkpoint": false}}'
    one_of_two(rank, recipe, port, ("--trainer.strategy", sharding, *words))


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_two_processes_that_share_the_weights_train_as_one(tmp_path, optimizer):
    recipe = write_recipe(tmp_path)
    words, error = ("--model.optimizer.name", optimizer, "--trainer.max_steps", 7), 2e-4
    if optimizer == "muon":
        error = 2e-2  # its products are bfloat16: an update's last bits depend on the order of the gradient's sums
    alone = run(recipe, *STILL, "--trainer.default_root_dir", tmp_path / "alone", *words)
    assert in_processes(sharded_over_two, recipe, free_port(), words, count=2) == [0, 0]
    ours, theirs = (read_curves(path / "metrics.csv") for path in (tmp_path / "run", tmp_path / "alone"))
    for step, row in theirs.items():
        for name in row.keys() - {*TIMED, "train/row_fill"}:
            assert ours[step][name] == pytest.approx(row[name], rel=error), (step, name)
    model = EmuForCausalLM.from_pretrained(tmp_path / "run" / "model")
    for name, weight in alone.model.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, atol=error / 2), name


@pytest.mark.parametrize("two", [pytest.param(one_of_two, marks=pytest.mark.slow), sharded_over_two])
def test_a_run_of_one_process_goes_on_with_two(tmp_path, alone, two):
    recipe = write_recipe(tmp_path)
    run(recipe, *STILL, "--trainer.max_steps", 6)
    assert in_processes(two, recipe, free_port(), ("--ckpt_path", "last"), count=2) == [0, 0]
    ours, theirs = (read_curves(path / "metrics.csv") for path in (tmp_path / "run", alone[1]))
    assert {s: r["train/loss"] for s, r in ours.items() if "train/loss" in r} == pytest.approx(
        {s: r["train/loss"] for s, r in theirs.items() if "train/loss" in r}, rel=1e-4
    )


class Vanish(Callback):
    """Kills the second process in the middle of a run."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def told_by_two(rank, two, recipe, port, words):
    try:
        two(rank, recipe, port, ("--trainer.callbacks", f"{__name__}.Vanish", *words))
    except ConnectionError as error:
        expected = "another of the 2 processes has ended .*; look at what it said last, and go on with --ckpt_path last"
        os._exit(0 if re.match(expected, error.strerror) else 3)


@pytest.mark.slow
@pytest.mark.parametrize("two", [one_of_two, sharded_over_two])
def test_a_process_that_is_killed_ends_the_others_with_a_message(tmp_path, two):
    started = time.monotonic()
    assert in_processes(told_by_two, two, write_recipe(tmp_path), free_port(), (), count=2) == [0, -signal.SIGKILL]
    assert time.monotonic() - started < 60


def alone_of_two(rank, recipe, port):
    lost_ranks.MEETING_SECONDS = 2.0
    one_of_two(rank, recipe, port, ())


@pytest.mark.slow
def test_a_process_that_never_comes_is_waited_for_only_so_long(tmp_path, capfd):
    assert in_processes(alone_of_two, write_recipe(tmp_path), free_port()) == [1]
    assert "process 0 of 2 has waited 2 s for the others; start as many as trainer.devices" in capfd.readouterr().err


@pytest.mark.slow
def test_split_weights_have_the_average_of_whole_ones_and_go_on_with_it(tmp_path):
    recipe = write_recipe(tmp_path)
    words = ("--model.average_decay", 0.8, "--model.checkpointing", "full", "--model.spikes", '{"window": 4}')
    still = ("--model.config.residual_dropout", 0)
    run(recipe, *still, *words, "--trainer.default_root_dir", tmp_path / "alone")
    few = ("--trainer.max_steps", 6)
    assert in_processes(sharded_over_two, recipe, free_port(), (*words, *few), count=2) == [0, 0]
    assert in_processes(sharded_over_two, recipe, free_port(), (*words, "--ckpt_path", "last"), count=2) == [0, 0]
    ours, theirs = (EmuForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("run", "alone"))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=1e-4), name
    states = [
        read_checkpoint(tmp_path / name / "checkpoints" / "step=00000012.safetensors")["emu"]
        for name in ("run", "alone")
    ]
    for name, weight in states[1]["average"]["weights"].items():
        assert torch.allclose(states[0]["average"]["weights"][name], weight, atol=1e-4), name
    for name, past in states[1]["spikes"]["accepted"].items():
        assert states[0]["spikes"]["accepted"][name] == pytest.approx(past, rel=1e-3), name


def compiled_over_two(rank, recipe, port):
    module.compile_blocks = partial(module.compile_blocks, backend="aot_eager")
    sharded_over_two(rank, recipe, port, ("--model.compile", True, "--trainer.max_steps", 7))


@pytest.mark.slow
def test_split_weights_are_gathered_around_compiled_blocks(tmp_path):
    recipe, words = write_recipe(tmp_path), ("--model.config.residual_dropout", 0, "--trainer.max_steps", 7)
    run(recipe, *words, "--trainer.default_root_dir", tmp_path / "alone")
    assert in_processes(compiled_over_two, recipe, free_port(), count=2) == [0, 0]
    ours, theirs = (EmuForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("run", "alone"))
    assert all(torch.allclose(ours[name], weight, atol=1e-4) for name, weight in theirs.items())
