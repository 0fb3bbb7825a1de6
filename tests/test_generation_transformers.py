"""The engine against transformers' documented call for Emu3, code for code."""

import pytest
import torch

from benchmarks.generation_peers import (
    Setup,
    build_pair,
    competent_reference,
    make_prompts,
    scaled_vocabulary,
    transformers_reference,
)
from emu.generation import Engine
from emu.layouts import Emu3Layout

VOCABULARY = scaled_vocabulary(1024)  # 148 text ids, 32 codes


def prompts_of(lengths, seed):
    return [make_prompts(VOCABULARY, 1, length, seed + length)[0] for length in lengths]


@pytest.mark.parametrize(
    "setup, lengths, negative_lengths, grid",
    [
        (Setup(64, 2, 4, 2, 96), [12], [9], (4, 5)),
        (Setup(48, 3, 6, 1, 80), [8], [21], (3, 3)),
        (Setup(64, 2, 4, 4, 96), [12, 7, 19, 9], [8, 16, 11, 6], (3, 4)),
    ],
    ids=["one", "long negative", "four"],
)
def test_greedy_codes_equal_the_documented_call(setup, lengths, negative_lengths, grid):
    theirs, ours = build_pair(setup, VOCABULARY, init=0.2)
    prompts, negatives = prompts_of(lengths, 1), prompts_of(negative_lengths, 100)
    # One by one: transformers attends to the left padding of negative prompts of unequal length.
    expected = torch.cat(
        [
            transformers_reference(theirs, VOCABULARY, [one], [negative], grid, guidance_scale=3.0, do_sample=False)
            for one, negative in zip(prompts, negatives, strict=True)
        ]
    )
    engine = Engine(ours, Emu3Layout(VOCABULARY))
    found = engine.generate_codes(prompts, negatives, grid, guidance_scale=3.0, temperature=0)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 5
    unguided = engine.generate_codes(prompts, grid=grid, guidance_scale=1.0, temperature=0)
    assert not torch.equal(found, unguided)


def test_a_batch_of_equal_lengths_equals_the_documented_call():
    theirs, ours = build_pair(Setup(64, 2, 4, 2, 96), VOCABULARY, init=0.2)
    prompts, negatives = prompts_of([9] * 4, 1), prompts_of([13] * 4, 100)
    expected = transformers_reference(
        theirs, VOCABULARY, prompts, negatives, (3, 4), guidance_scale=2.0, do_sample=False
    )
    found = Engine(ours, Emu3Layout(VOCABULARY)).generate_codes(
        prompts, negatives, (3, 4), guidance_scale=2.0, temperature=0
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("modality", "grid"), [("image", (3, 4)), ("video", (2, 3, 4))])
def test_greedy_codes_equal_the_loop_that_a_competent_user_writes(modality, grid):
    theirs, ours = build_pair(Setup(64, 2, 4, 2, 96), VOCABULARY, init=0.2)
    prompts, negatives = prompts_of([9, 7], 1), prompts_of([13, 8], 100)
    layout = Emu3Layout(VOCABULARY)
    options = {"guidance_scale": 2.0, "do_sample": False}
    expected = competent_reference(theirs, layout.block(modality, grid), prompts, negatives, **options)
    found = Engine(ours, layout).generate_codes(prompts, negatives, grid, guidance_scale=2.0, temperature=0)
    assert torch.equal(found, expected) and len(found.unique()) > 5


@torch.no_grad()
def test_a_slice_of_the_head_loses_nothing_under_guidance():
    """The mix of log-softmaxes over all ids, and of plain logits over the slice, differ by one number per row."""
    _, ours = build_pair(Setup(64, 2, 4, 2, 96), VOCABULARY, init=0.2)
    hidden = torch.randn(2, 64) * 3
    first, count = VOCABULARY.ranges["vision"]
    whole, part = ours.project(hidden).log_softmax(-1), ours.project(hidden, first, count)
    mixed_whole = whole[1] + 3 * (whole[0] - whole[1])
    difference = mixed_whole[first : first + count] - (part[1] + 3 * (part[0] - part[1]))
    assert difference.std() < 1e-4 < difference.mean().abs()
