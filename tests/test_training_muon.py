"""Muon for hidden matrices, AdamW for the rest, as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from emu.training.optimizers import build_optimizer, hidden_matrices
from emu_tokenizers.training.schedules import OptimizerOptions
from tests.training_toys import run, same, write_recipe

OPTIONS = OptimizerOptions(name="muon", lr=0.02, weight_decay=0.1, schedule="constant")


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.hidden, self.lm_head = nn.Linear(6, 6, bias=False), nn.Linear(6, 7, bias=False)

    def forward(self, ids):
        return self.lm_head(self.norm(self.hidden(self.embed(ids))))


def toy():
    torch.manual_seed(0)
    return Toy()


def descend(model, *optimizers, steps=3):
    ids = torch.arange(7)
    for _ in range(steps):
        nn.functional.cross_entropy(model(ids), ids.roll(1)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_embedding_head_and_norms_are_no_hidden_matrices():
    model = toy()
    assert [id(p) for p in hidden_matrices(model)] == [id(model.hidden.weight)]
    model.hidden.requires_grad_(False)
    assert hidden_matrices(model) == []


def test_it_takes_the_steps_of_both_optimizers_of_torch():
    ours, theirs = toy(), toy()
    descend(ours, build_optimizer(ours, OPTIONS, 10)[0])
    muon = torch.optim.Muon([theirs.hidden.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [theirs.lm_head.weight], "weight_decay": 0.1},
        {"params": [theirs.embed.weight, *theirs.norm.parameters()], "weight_decay": 0.0},
    ]
    descend(theirs, muon, torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), fused=True))
    assert same(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_the_schedule_moves_both():
    optimizer, schedule = build_optimizer(
        toy(), OptimizerOptions(name="muon", lr=0.1, schedule="wsd", decay_steps=2), 4
    )
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert {group["matrices"] for group in optimizer.param_groups} == {True, False}
    assert {group["lr"] for group in optimizer.param_groups} == {optimizer.param_groups[0]["lr"]} and schedule
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_a_loaded_state_goes_on_bit_for_bit():
    whole, first = toy(), toy()
    optimizer, _ = build_optimizer(first, OPTIONS, 10)
    descend(first, optimizer)
    second = copy.deepcopy(first)
    other, _ = build_optimizer(second, OPTIONS, 10)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(second, other)
    descend(whole, build_optimizer(whole, OPTIONS, 10)[0], steps=6)
    assert same(dict(second.named_parameters()), dict(whole.named_parameters()))


@pytest.mark.parametrize("at", [pytest.param(5, marks=pytest.mark.slow), 6])
def test_a_run_resumes_bit_for_bit(tmp_path, at):
    words = ("--model.optimizer.name", "muon")
    (tmp_path / "whole").mkdir()
    whole = run(write_recipe(tmp_path / "whole"), *words)
    recipe = write_recipe(tmp_path)
    run(recipe, *words, "--trainer.max_steps", at)
    assert same(run(recipe, *words, "--ckpt_path", "last").state_dict(), whole.state_dict())
