"""Steps unlike those before them: their updates are skipped and written down, and too many of them end the run."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from emu.training.checkpoint_file import read_checkpoint
from emu.training.curves import read_curves
from emu_tokenizers.training.gradient_guard import SKIPPED_FILE, forget_skipped, record_skipped
from emu_tokenizers.training.spikes import SpikeGuard, SpikeOptions
from tests.training_toys import VOCABULARY, ToyData, run, same, write_recipe


class Noise(Callback):
    """Puts tokens drawn at random in the place of the documents of some steps, and remembers the weights around them."""

    def __init__(self, steps: list[int]):
        self.steps = steps
        self.weights = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights[trainer.global_step] = pl_module.model.lm_head.weight.detach().clone()
        if trainer.global_step in self.steps:
            generator = torch.Generator().manual_seed(trainer.global_step)
            noise = torch.randint(0, VOCABULARY.size, batch.input_ids.shape, generator=generator)
            for ids in (batch.input_ids, batch.labels):
                ids.copy_(torch.where(batch.segment_ids > 0, noise, ids))


class Rate(Callback):
    """Makes the rate of one step a hundred times as high."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for group in optimizer.param_groups:
            group["lr"] *= 100 if trainer.global_step == self.step else 1


def guarded(recipe, steps, *words, callback=None):
    name, *options = callback or ("Noise", "--trainer.callbacks.steps", "[]")
    named = ("--trainer.callbacks", f"{__name__}.{name}", *options)
    spikes = ("--model.spikes", '{"window": 16}', "--model.config.residual_dropout", 0)
    return run(recipe, "--trainer.max_steps", steps, *spikes, *named, *words)


def noise(*steps):
    return "Noise", "--trainer.callbacks.steps", str(list(steps))


def skipped(folder):
    file = folder / SKIPPED_FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.filterwarnings("ignore:step")
def test_a_batch_of_noise_is_skipped_in_its_own_step_and_written_with_its_documents(tmp_path):
    module = guarded(write_recipe(tmp_path), 32, callback=noise(30))
    weights = next(callback for callback in module.trainer.callbacks if isinstance(callback, Noise)).weights
    assert [step for step in range(31) if torch.equal(weights[step], weights[step + 1])] == [30]
    (line,) = skipped(tmp_path / "run")
    assert line["step"] == 30 and line["why"].startswith("loss ")
    mixture = ToyData({"captions": 3, "pictures": 4}, 32)._mixture()
    assert line["documents"] == [reference._asdict() for reference in mixture.references(30)]
    curves = read_curves(tmp_path / "run" / "metrics.csv")
    assert [int(curves[step]["train/skipped_steps"]) for step in (30, 31, 32)] == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
def test_a_step_of_a_hundred_times_the_rate_is_reported_no_later_than_two_steps_after_it(tmp_path):
    with pytest.raises(FloatingPointError, match="3 of the last 10 steps, up to step .* were spikes: .*skipped.jsonl"):
        guarded(write_recipe(tmp_path), 40, callback=("Rate", "--trainer.callbacks.step", "20"))
    assert skipped(tmp_path / "run")[0]["step"] in (20, 21, 22)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
def test_three_steps_of_noise_in_ten_end_the_run_and_two_do_not(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(FloatingPointError, match="up to step 37"):
        guarded(recipe, 42, callback=noise(30, 32, 37))
    assert [line["step"] for line in skipped(tmp_path / "run")] == [30, 32, 37]
    other = tmp_path / "other"
    guarded(recipe, 42, "--trainer.default_root_dir", other, callback=noise(30, 32, 40))
    assert [line["step"] for line in skipped(other)] == [30, 32, 40]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
def test_a_resumed_run_looks_back_on_the_steps_before_it_and_the_guard_changes_nothing_else(tmp_path):
    recipe, few = write_recipe(tmp_path), ("--checkpoint.every_n_steps", 16)
    straight = guarded(recipe, 36, "--trainer.default_root_dir", tmp_path / "straight", *few, callback=noise(30, 34))
    guarded(recipe, 32, *few, callback=noise(30))
    resumed = guarded(recipe, 36, *few, "--ckpt_path", "last", callback=noise(34))
    assert same(resumed.model.state_dict(), straight.model.state_dict())
    states = [
        read_checkpoint(folder / "checkpoints" / "step=00000036.safetensors")["emu"]
        for folder in (tmp_path / "run", tmp_path / "straight")
    ]
    assert states[0]["spikes"] == states[1]["spikes"] and states[0]["num_skipped"] == 2
    assert skipped(tmp_path / "run") == skipped(tmp_path / "straight")


@pytest.mark.slow
def test_a_run_without_spikes_is_the_same_with_and_without_the_guard(tmp_path):
    recipe, still = write_recipe(tmp_path), ("--model.config.residual_dropout", 0, "--trainer.max_steps", 20)
    plain = run(recipe, "--trainer.default_root_dir", tmp_path / "plain", *still)
    assert same(guarded(recipe, 20).model.state_dict(), plain.model.state_dict())
    assert not skipped(tmp_path / "run")


def test_no_step_is_judged_before_enough_were_accepted_and_spikes_are_not_looked_back_on():
    guard = SpikeGuard(SpikeOptions(window=4))
    assert [guard.judge(loss, 1.0) for loss in (1.0, 50.0, 1.1, 0.9)] == [""] * 4
    guard = SpikeGuard(SpikeOptions(window=4))
    for loss in (1.0, 1.1, 0.9, 1.0):
        guard.judge(loss, 1.0)
    for _ in range(3):  # the third is as bad as the first
        assert "loss 2 is above" in guard.judge(2.0, 1.0) and "gradient norm nan is above" in guard.judge(
            1.0, float("nan")
        )
    assert guard.is_too_much and guard.judge(1.05, 1.0) == ""


def test_wrong_numbers_of_the_guard_are_named_before_any_work(tmp_path):
    options = '{"sigmas": -1, "window": 1, "most": 4, "among": 3}'
    with pytest.raises(
        ValueError, match=r"(?s)spikes.sigmas is -1.*spikes.window is 1.*spikes.among is 3; expected as many"
    ):
        run(write_recipe(tmp_path), "--model.spikes", options)


def test_no_step_is_reported_of_ten_thousand_that_are_drawn_from_a_real_run():
    with open(
        Path(__file__).parent / "data" / "digits_steps.csv"
    ) as file:  # the last steps of `emu fit --config digits`
        steps = [(float(row["loss"]), float(row["gradient_norm"])) for row in csv.DictReader(file)]
    guard, generator = SpikeGuard(SpikeOptions()), random.Random(0)
    assert not any(guard.judge(*generator.choice(steps)) for _ in range(10_000))
    assert guard.judge(2 * steps[-1][0], steps[-1][1])


def test_a_line_that_a_kill_has_cut_does_not_keep_a_run_from_going_on(tmp_path):
    for step in (2, 5, 9):
        record_skipped(tmp_path, step, "gradient norm nan", [])
    file = tmp_path / SKIPPED_FILE
    file.write_bytes(file.read_bytes()[:-30])
    forget_skipped(tmp_path, 7)
    record_skipped(tmp_path, 8, "gradient norm inf", [])
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [2, 5, 8]
