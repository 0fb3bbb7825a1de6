"""What a plan says of a run, beside what the run takes in truth."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from emu import EmuConfig
from emu.cli.main import main
from emu.pipeline.drawing_plan import drawing_plan
from emu.training.cli import EmuCLI
from emu.training.live_bytes import LiveBytes
from emu.training.module import EmuModule
from emu.training.planning.machines import CARDS
from emu.training.planning.run_facts import read_facts
from emu.training.planning.run_plan import (
    Planner,
    num_parameters,
    recipe_layout,
    run_memory,
    step_options,
)
from tests.training_toys import write_recipe

SMALL = EmuConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=256,
)


class Measured(Callback):
    """The most bytes of tensors that live in a step after the first, beside the weights; largest first."""

    def on_train_start(self, trainer, pl_module):
        self.live, self.peaks = LiveBytes(), []
        self.live.__enter__()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.live.peak = self.live.now

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.peaks.append(self.live.peak)

    def on_train_end(self, trainer, pl_module):
        self.live.__exit__(None, None, None)


def measured(recipe, folder, *words):
    """Bytes at the worst moment of a recipe's steps, weights among them."""
    few = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--export", "null"]
    few += ["--trainer.default_root_dir", str(folder), "--trainer.callbacks", "[]"]
    cli = EmuCLI(EmuModule, ["--config", str(recipe), *few, *words])
    callback = Measured()
    cli.trainer.callbacks.insert(0, callback)
    cli.fit()
    return max(callback.peaks[1:]) + sum(4 * weight.numel() for weight in cli.model.parameters())


def said(recipe, *words):
    facts = read_facts(["--config", str(recipe), *words])
    return run_memory(facts, step_options(facts, recipe_layout(facts, 1)))


def roomy(folder):
    """The toy recipe with a model and rows that outweigh what surrounds them."""
    recipe = write_recipe(folder)
    table = yaml.safe_load(recipe.read_text())
    table["model"]["config"] |= {"hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 256}
    table["data"]["init_args"] |= {"row_length": 256, "documents_per_step": {"captions": 60, "pictures": 80}}
    recipe.write_text(yaml.safe_dump(table))
    return recipe


@pytest.mark.parametrize(
    "words",
    [pytest.param((), marks=pytest.mark.slow), ("--model.optimizer.name", "muon", "--model.checkpointing", "full")],
)
def test_a_step_takes_what_the_plan_says(tmp_path, words):
    recipe = roomy(tmp_path)
    assert said(recipe, *words).peak == pytest.approx(measured(recipe, tmp_path / "run", *words), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["digits", "shapes"])
def test_recipes_for_processors_take_what_the_plan_says(recipe, tmp_path):
    assert said(recipe).peak == pytest.approx(measured(recipe, tmp_path), rel=0.1)


def test_parameters_are_those_of_the_formulas():
    blocks, tables = num_parameters(SMALL)
    matrices = 3 * (4 * 64 * 64 + 3 * 64 * 128)
    assert tables == 2 * 500 * 64 and blocks == matrices + 3 * 2 * 64 + 64
    assert num_parameters(EmuConfig(num_key_value_heads=8)) == (6_979_588_096, 2 * 184_622 * 4096)


def test_weights_that_are_split_take_their_share_of_a_card():
    facts = read_facts(["--config", "emu3-8b-stage1"])
    assert facts.sharded and facts.mixed == torch.bfloat16 and facts.rows == 512 and facts.tokens_per_step == 512 * 5120
    plan = Planner(facts, CARDS["h100"]).planned(recipe_layout(facts, 64))
    weights = 4 * sum(num_parameters(facts.config))
    assert plan.memory.weights == weights / 64 and plan.memory.optimizer == 2 * weights / 64
    assert plan.memory.gathered > 4 * 2 * 184_622 * 4096
    assert plan.sent == pytest.approx(3 * weights * 63 / 64)
    assert plan.memory.total <= CARDS["h100"].memory


@pytest.mark.slow
def test_a_layout_that_fits_is_found_where_the_recipes_own_does_not(capsys):
    words = ["plan", "--config", "100m", "--gpu", "rtx4090", "--model.config.num_hidden_layers", "4"]
    words += ["--data.rows_per_step", "128", "--trainer.accumulate_grad_batches", "1"]
    assert main(words) == 1
    lines = {line[:18].strip(): line[20:] for line in capsys.readouterr().out.splitlines()}
    assert "measured" in lines["cards"] and "a layout that fits" in lines
    assert "trainer.accumulate_grad_batches" in lines["a layout that fits"]


def test_a_recipe_for_processors_has_its_memory_and_no_time(tmp_path, capsys):
    assert main(["plan", "--config", str(roomy(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "at most" in out and "not modelled on processors" in out and "days" not in out


def test_drawing_takes_weights_cache_and_pixels(capsys):
    plan = drawing_plan("digits", (32, 32), frames=8)
    assert plan.grid == (2, 4, 4) and plan.guided and plan.tokens > math.prod(plan.grid)
    more = drawing_plan("digits", (64, 64), frames=8, guidance_scale=1.0)
    assert not more.guided and more.memory.sequence > plan.memory.sequence / 2
    assert main(["plan", "--generate", "digits", "--size", "32", "32", "--batch", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 x 4 codes" in out and "of 85.4 GB on the H100" in out and "not measured" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give a recipe"),
        (["--config", "digits", "--generate", "digits"], "give a recipe"),
        (["--config", "digits", "--gpus", "0"], "--gpus is 0; expected 1 or more"),
        (["--generate", "digits", "--size", "30", "32"], "a side of 30 pixels; expected multiples of 8"),
        (["--generate", "digits", "--trainer.max_steps", "3"], "is not an option of emu plan --generate"),
        (["--config", "100m", "--model.optimizer.lr", "-1"], "optimizer.lr is -1"),
    ],
)
def test_what_cannot_be_planned_is_said(words, told, capsys):
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err
