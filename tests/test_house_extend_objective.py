"""An objective of one's own: one file in the working folder, named by class path; it trains, shows its curve, is checked and resumes."""

from __future__ import annotations

import sys

import pytest

from emu.training.checkpoint_file import read_checkpoint
from emu.training.curves import read_curves
from tests.training_toys import run, same, write_recipe

OBJECTIVE = '''
import copy

import torch

from emu.model.scoring import token_losses
from emu.training.objectives import LossParts, Objective


class Anchored(Objective):
    """Next-token prediction that stays near the model which training starts from."""

    def __init__(self, strength: float = 1.0) -> None:
        self.strength, self.batches = strength, 0

    def setup(self, module):
        self.start = copy.deepcopy(module.model).eval().requires_grad_(False)

    def problems(self, trainer):
        return [] if self.strength >= 0 else [f"objective.strength is {self.strength}; expected 0 or more"]

    def loss(self, model, batch):
        self.batches += 1
        losses = token_losses(model, batch)
        with torch.no_grad():
            at_first = token_losses(self.start, batch)
        weights = batch.loss_weights / self.weight(batch)
        distance = ((losses - at_first) ** 2 * weights).sum()
        loss = (losses * weights).sum() + self.strength * distance
        return LossParts(loss, {"distance": distance.detach()}, losses.detach)

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = int(state["batches"])
'''
PLAIN = ("--model.config.residual_dropout", 0, "--model.config.z_loss", 0, "--trainer.max_steps", 4)
NAMED = ("--model.objective", "my_objective.Anchored", "--model.objective.strength")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_objective.py").write_text(OBJECTIVE)
    yield write_recipe(tmp_path)
    sys.modules.pop("my_objective", None)


def test_an_objective_of_ones_own_trains_by_its_class_path(recipe, tmp_path):
    plain = run(recipe, *PLAIN, "--trainer.default_root_dir", "plain")
    free = run(recipe, *PLAIN, *NAMED, 0, "--trainer.default_root_dir", "free")
    for name, weight in plain.model.state_dict().items():
        assert (free.model.state_dict()[name] - weight).abs().max() < 1e-3, name

    held = run(recipe, *PLAIN, *NAMED, 5, "--checkpoint.every_n_steps", 2)
    rows, loose = read_curves(tmp_path / "run" / "metrics.csv"), read_curves(tmp_path / "free" / "metrics.csv")
    assert rows[1]["train/distance"] < 1e-9 and 0 < rows[4]["train/distance"] < loose[4]["train/distance"]
    assert {"train/loss/text", "train/source_loss/captions"} <= rows[4].keys()
    assert "class_path: my_objective.Anchored" in (tmp_path / "run" / "config.yaml").read_text()

    halves = (*PLAIN, *NAMED, 5, "--trainer.default_root_dir", "halves")
    run(recipe, *halves, "--trainer.max_steps", 2)
    resumed = run(recipe, *halves, "--ckpt_path", "last")
    assert same(resumed.model.state_dict(), held.model.state_dict())
    assert resumed.objective.batches == 4
    assert read_checkpoint(next((tmp_path / "halves" / "checkpoints").glob("*4.*")))["emu"]["objective"]["batches"] == 4

    with pytest.raises(ValueError, match=r"objective\.strength was|model\.objective was"):
        run(recipe, *PLAIN, *NAMED, 1, "--trainer.default_root_dir", "halves", "--ckpt_path", "last")
    with pytest.raises(ValueError, match="objective.strength is -1"):
        run(recipe, *PLAIN, *NAMED, -1, "--trainer.default_root_dir", "never")
