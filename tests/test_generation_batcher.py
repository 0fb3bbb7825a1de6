"""Requests that join and leave a running batch: each has the tokens that it has alone, whatever runs beside it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from emu.generation import (
    Batcher,
    Engine,
    FillRequest,
    GridRequest,
    RequestCancelled,
    RequestTooLarge,
    Sampling,
    TextRequest,
)
from emu.generation import cohort as cohort_module
from emu.generation import prefill as prefill_module
from emu.generation.limits import BrokenLogits
from emu.layouts import Emu3Layout
from emu.vocabulary import CONTROLS, HOLE, Vocabulary
from tests.engine_toys import Letters, negative, prompt, small

VOCABULARY = Vocabulary.build(40, {"vision": 24}, (*CONTROLS, HOLE))
LAYOUT = Emu3Layout(VOCABULARY, Letters())
GRIDS = [("image", (2, 2), None), ("image", (3, 4), None), ("video", (2, 2, 3), {"frames": 8, "fps": 4})]


def engine_of(deterministic=True, dtype=torch.float32, end_bias=2.0) -> Engine:
    """`end_bias` scales the end token's row of the head, so that texts end early and late."""
    model = small(VOCABULARY, qk_norm=True).to(dtype)
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY.control("eos")] *= end_bias
    return Engine(model, LAYOUT, deterministic=deterministic)


def request(draw: random.Random):
    """Any request: texts that begin alike, a picture before them or none, every setting of each kind."""
    noise = torch.Generator().manual_seed(draw.randrange(3))
    words = draw.choice(["", "abc", "abcd", "fed"])
    sampling = draw.choice(
        [Sampling(3.0, 1.0, 9), Sampling(1.0, 1.0, 9), Sampling(3.0, 0.0), Sampling(1.0, 0.8, 0, 0.9)]
    )
    shown = draw.random() < 0.5
    picture = torch.cat(
        [torch.tensor(LAYOUT.header("image", (3, 4))), LAYOUT.block("image", (3, 4)).fill(codes((3, 4), noise))]
    )
    bos = torch.tensor([VOCABULARY.control("bos")])

    def begun(ids):
        return torch.cat([bos, picture, ids[1:]]) if shown else ids

    about = {"seed": draw.randrange(3), "stream": draw.randrange(2)}
    kind = draw.choice(["grid", "grid", "fill", "text"])
    if kind == "text":
        ids = torch.tensor([VOCABULARY.control("bos"), *LAYOUT.encode_text(words)])
        return TextRequest(begun(ids), replace(sampling, guidance_scale=1.0), draw.choice([1, 6, 20]), **about)
    modality, grid, meta = draw.choice(GRIDS)
    head = prompt(LAYOUT, words, modality, grid, meta)
    against = negative(LAYOUT, head) if sampling.guided else None
    about |= {"window": draw.choice([1, 4])}
    if kind == "fill":
        hidden = torch.rand(grid, generator=noise) < draw.choice([0.1, 0.6])
        return FillRequest(begun(head), against, modality, grid, codes(grid, noise), hidden, sampling, **about)
    given = draw.choice([None, codes((1, *grid[1:]), noise)])
    return GridRequest(begun(head), against, modality, grid, sampling, prefix_codes=given, **about)


def codes(grid, noise):
    return torch.randint(0, 24, grid, generator=noise)


def alone(engine: Engine, one) -> torch.Tensor:
    """What the engine's own calls give."""
    noise = {"seed": one.seed, "streams": [one.stream]}
    if isinstance(one, TextRequest):
        return engine.continue_texts([one.prompt], one.sampling, max_new_tokens=one.max_new_tokens, **noise)[0]
    negatives = [] if one.negative is None else [one.negative]
    if isinstance(one, GridRequest):
        return engine.generate_grids(
            [one.prompt],
            negatives,
            one.modality,
            one.grid,
            one.sampling,
            prefix_codes=one.prefix_codes,
            window=one.window,
            **noise,
        )[0]
    settings = {name: getattr(one.sampling, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}
    return engine.fill_codes(
        [one.prompt],
        one.codes[None],
        one.hidden[None],
        negatives or None,
        modality=one.modality,
        window=one.window,
        **settings,
        **noise,
    )[0]


class Schedules:
    """Random arrivals and cancellations of requests from a pool, whose outcomes alone are computed once."""

    def __init__(self, engine: Engine, pool: int):
        draw = random.Random(0)
        self.engine, self.pool = engine, [request(draw) for _ in range(pool)]
        self.expected = [alone(engine, one) for one in self.pool]

    def run(self, seed: int) -> int:
        """Run one schedule, compare, and return how many requests ended as they do alone."""
        draw = random.Random(seed)
        memory = draw.choice([None, 500_000])
        batcher = Batcher(self.engine, slots=draw.randint(1, 6), memory=memory)
        left, tickets, cancelled = draw.randint(3, 14), [], set()
        while left or batcher.step():
            while left and draw.random() < 0.4:
                number = draw.randrange(len(self.pool))
                tickets.append((number, batcher.submit(self.pool[number])))
                left -= 1
            if tickets and draw.random() < 0.05:
                number, ticket = draw.choice(tickets)
                if not ticket.done:
                    ticket.cancel()
                    cancelled.add(ticket)
            assert batcher.running <= batcher.slots
        for number, ticket in tickets:
            assert ticket.done
            if ticket in cancelled:
                with pytest.raises(RequestCancelled):
                    ticket.result(0)
            else:
                assert torch.equal(ticket.result(0), self.expected[number]), (seed, self.pool[number])
        return len(tickets) - len(cancelled)


@pytest.fixture
def short_chunks(monkeypatch):
    """Prompts of several chunks, and beginnings that are long enough to be shared."""
    monkeypatch.setattr(prefill_module, "PREFILL_CHUNK", 8)
    monkeypatch.setattr(prefill_module, "WORTH_COPYING", 4)


def test_each_request_has_the_tokens_that_it_has_alone_bit_for_bit(short_chunks):
    schedules = Schedules(engine_of(), 24)
    assert sum(schedules.run(seed) for seed in range(5)) > 15


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_500_schedules(short_chunks, deterministic):
    engine = engine_of(deterministic, torch.float32 if deterministic else torch.float64)
    schedules = Schedules(engine, 150)
    assert sum(schedules.run(seed) for seed in range(500)) > 3000


def test_logits_beside_others_are_those_alone_bit_for_bit(short_chunks, monkeypatch):
    """Tokens could agree by chance; the numbers that they are drawn from cannot."""
    engine, draw, seen = engine_of(), random.Random(5), []
    watched = cohort_module.Cohort.watched

    def recorded(self, logits, numbers, lengths):
        for place, number in enumerate(numbers):
            seen.append((id(self.lanes[number].ticket), lengths[place], logits[:, place].clone()))
        return watched(self, logits, numbers, lengths)

    monkeypatch.setattr(cohort_module.Cohort, "watched", recorded)
    requests = [request(draw) for _ in range(8)]
    batcher = Batcher(engine, slots=3)
    tickets = [batcher.submit(one) for one in requests]
    batcher.run()
    together, compared = list(seen), 0
    for one, ticket in zip(requests, tickets, strict=True):
        seen.clear()
        own = Batcher(engine, slots=1)
        own.submit(one)
        own.run()
        mine = [(length, logits) for which, length, logits in together if which == id(ticket)]
        assert len(mine) == len(seen)
        for (length, logits), (_, other_length, other) in zip(mine, seen, strict=True):
            assert length == other_length and torch.equal(logits, other)
            compared += 1
    assert compared > 40
