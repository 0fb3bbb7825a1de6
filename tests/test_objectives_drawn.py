"""Log-probabilities of drawn codes are those of the distribution that the engine drew from."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from emu.evaluation.statistics import chi_square
from emu.generation import Engine
from emu.generation.sampling import Sampling
from emu.layouts import Emu3Layout
from emu.training.objectives.code_distributions import (
    DrawnBlocks,
    block_scores,
    divergence,
    drawn_log_probs,
    entropy,
    kept_candidates,
    log_probs_of,
)
from emu.vocabulary import Vocabulary
from tests.engine_toys import Letters, negative, prompt, small
from tests.objective_toys import SAMPLING, batch_of, grpo, plain_log_probs, prompt_of


def drawn_by(engine, prompts, grid, sampling, streams, modality="image"):
    negatives = [negative(engine.layout, one) for one in prompts]
    codes = engine.generate_grids(prompts, negatives, modality, grid, sampling, streams=streams)
    sides = [[one for one in side for _ in range(streams)] for side in (prompts, negatives)]
    return DrawnBlocks(*sides, codes, engine.layout.block(modality, grid), sampling)


def recorded_by(model, blocks):
    return replace(blocks, kept=kept_candidates(block_scores(model, blocks).open, blocks))


@pytest.fixture(scope="module")
def toys():
    vocabulary = Vocabulary.build(40, {"vision": 9})
    model = small(vocabulary)
    return model, Engine(model, Emu3Layout(vocabulary, Letters(), ["image"]))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(guidance_scale=3.0, temperature=0.7, top_k=4),
        Sampling(guidance_scale=3.0, temperature=1.5, top_p=0.8),
        Sampling(guidance_scale=0.5, top_k=5, top_p=0.9),
        Sampling(),
    ],
)
def test_they_equal_a_plain_computation_in_float64(toys, sampling):
    model, engine = toys
    prompts = [prompt(engine.layout, text, grid=(2, 3)) for text in ("a", "bcd")]
    blocks = drawn_by(engine, prompts, (2, 3), sampling, 2)
    exact = copy.deepcopy(model).double()
    blocks = recorded_by(exact, blocks)
    ours = drawn_log_probs(block_scores(exact, blocks).open, blocks)
    single = drawn_log_probs(block_scores(model, blocks).open, blocks)
    assert ours.dtype == torch.float64 and single.dtype == torch.float32
    for number, codes in enumerate(blocks.codes):
        sides = blocks.prompts[number], blocks.negatives[number]
        theirs, kept = plain_log_probs(exact, *sides, blocks.template, codes, sampling)
        assert torch.equal(blocks.kept[number], kept)
        torch.testing.assert_close(ours[number], theirs, atol=1e-9, rtol=0)
        torch.testing.assert_close(single[number].double(), theirs, atol=2e-4, rtol=0)


def test_what_the_engine_draws_follows_them(toys):
    model, engine = toys
    sampling = Sampling(guidance_scale=3.0, temperature=1.2, top_k=3)
    blocks = drawn_by(engine, [prompt(engine.layout, "abc", grid=(1, 2))], (1, 2), sampling, 400)
    every = torch.cartesian_prod(torch.arange(9), torch.arange(9))[:, None]
    table = replace(blocks, prompts=blocks.prompts[:1] * 81, negatives=blocks.negatives[:1] * 81, codes=every)
    with torch.no_grad():
        scores = block_scores(model, table).open
    kept = scores >= scores.topk(3).values[..., -1:]
    odds = log_probs_of(scores.masked_fill(~kept, -torch.inf).log_softmax(-1), table.drawn).sum(1).double().exp()
    counts = torch.bincount(blocks.codes.flatten(1) @ torch.tensor([9, 1]), minlength=81)
    assert odds.sum() == pytest.approx(1) and not counts[odds == 0].any()
    likely = odds * 400 >= 5
    seen = [*counts[likely].tolist(), int(counts[~likely].sum())]
    expected = [*odds[likely].tolist(), float(odds[~likely].sum())]
    assert chi_square(np.array(seen), np.array(expected)).p_value > 1e-3


def test_the_kept_set_is_that_of_the_draw_and_has_no_gradient(toys):
    model, engine = toys
    blocks = drawn_by(
        engine, [prompt(engine.layout, "abc", grid=(1, 2))], (1, 2), Sampling(guidance_scale=3.0, top_k=2), 4
    )
    with pytest.raises(ValueError, match="were not recorded"):
        drawn_log_probs(block_scores(model, blocks).open, blocks)
    blocks = recorded_by(model, blocks)
    assert (blocks.kept.sum(-1) == 2).all() and blocks.kept.gather(-1, blocks.drawn[..., None]).all()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    moved = drawn_log_probs(block_scores(other, blocks).open, blocks)
    assert moved.isfinite().all()  # also where the other weights would not have kept the code


def test_divergence_and_entropy_are_sums_over_the_candidates():
    ours, theirs = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    ours[..., 4] = theirs[..., 4] = -torch.inf
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    p, q = ours.exp()[..., :4], theirs.exp()[..., :4]
    torch.testing.assert_close(divergence(ours, theirs), (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(entropy(ours), -(p * p.log()).sum(-1))


def test_after_ten_updates_every_ratio_is_that_of_float64(tiny_emu):
    emu = copy.deepcopy(tiny_emu)
    objective = grpo(emu, lambda candidates: [float(one.codes.sum()) for one in candidates], updates=11, group_size=4)
    start = copy.deepcopy(emu.model).double()
    prompts = [prompt_of(emu, text) for text in ("a red circle", "a ball")]
    batch, optimizer = batch_of(prompts), torch.optim.Adam(emu.model.parameters(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        objective.loss(emu.model, batch).loss.backward()
        optimizer.step()
    (held,) = objective._held
    with torch.no_grad():
        ratios = (drawn_log_probs(objective.scores(emu.model, held.blocks).open, held.blocks) - held.log_probs).exp()
    assert ratios.isfinite().all() and (ratios - 1).abs().max() > 0.05
    now = copy.deepcopy(emu.model).double()
    for number, codes in enumerate(held.blocks.codes):
        sides = held.blocks.prompts[number], held.blocks.negatives[number]
        before, kept = plain_log_probs(start, *sides, held.blocks.template, codes, SAMPLING)
        after, _ = plain_log_probs(now, *sides, held.blocks.template, codes, SAMPLING, kept)
        torch.testing.assert_close(ratios[number].double(), (after - before).exp().detach(), atol=0, rtol=1e-3)
