"""Requests that join and leave a running batch: each has the tokens that it has alone, whatever runs beside it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emu.generation import (
    Batcher,
    Engine,
    FillRequest,
    GridRequest,
    RequestCancelled,
    RequestTooLarge,
    Sampling,
    TextRequest,
    device_passes,
)
from emu.generation import cohort as cohort_module
from emu.generation import prefill as prefill_module
from emu.generation.lane import lane_of
from emu.generation.limits import BrokenLogits
from emu.layouts import Emu3Layout
from emu.model import attention as attention_module
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
        memory = draw.choice([None, 175_000 * self.engine.model.dtype.itemsize])
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


def test_passes_that_read_lengths_on_the_device_give_the_same_tokens(short_chunks, monkeypatch):
    """As on a GPU, without the recording."""
    schedules = Schedules(engine_of(deterministic=False, dtype=torch.float64), 16)
    monkeypatch.setattr(device_passes, "can_record", lambda model: True)
    assert sum(schedules.run(seed) for seed in range(4)) > 12


def test_rows_that_do_not_depend_on_others_are_read_where_they_are(monkeypatch):
    """A copy of all that a row holds, for each layer and token, would be most of what is read."""
    kept, on_lines = [], attention_module._on_cache_lines

    def noted(x):
        found = on_lines(x)
        assert found.data_ptr() % 64 == 0 and torch.equal(found, x)
        kept.append(found.data_ptr() == x.data_ptr())
        return found

    monkeypatch.setattr(attention_module, "_on_cache_lines", noted)
    batcher = Batcher(engine_of())
    for number, words in enumerate(("abc", "abcdef", "f")):
        batcher.submit(picture(words, seed=number))
    batcher.step()
    kept.clear()  # the prompts, computed apart
    batcher.run()
    assert len(kept) > 100 and all(kept)


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


def picture(words="abc", grid=(3, 4), **about) -> GridRequest:
    head = prompt(LAYOUT, words, "image", grid)
    return GridRequest(head, negative(LAYOUT, head), "image", grid, Sampling(3.0, 1.0, 9), **about)


def text(words="abc", most=10, **about) -> TextRequest:
    return TextRequest(torch.tensor([VOCABULARY.control("bos"), *LAYOUT.encode_text(words)]), Sampling(), most, **about)


def bytes_of(engine: Engine, one) -> int:
    return Batcher(engine)._bytes_of(lane_of(one, LAYOUT, 512))


def test_a_cancelled_request_leaves_its_slot_to_the_one_that_waits():
    batcher = Batcher(engine_of(), slots=1)
    first, second, third = (batcher.submit(picture(seed=seed)) for seed in range(3))
    batcher.step()
    assert (batcher.running, batcher.waiting) == (1, 2)
    first.cancel()
    third.cancel()
    batcher.step()
    assert first.done and third.done and not second.done
    assert (batcher.running, batcher.waiting) == (1, 0)
    batcher.run()
    assert torch.equal(second.result(), alone(batcher.engine, picture(seed=1)))
    with pytest.raises(RequestCancelled, match="cancelled before it was done"):
        first.result()
    second.cancel()
    assert torch.equal(second.result(), alone(batcher.engine, picture(seed=1)))  # what is done stays done


def test_requests_whose_prompts_are_there_begin_when_one_that_they_waited_for_is_cancelled(short_chunks):
    batcher = Batcher(engine_of(), slots=2)
    short, long = batcher.submit(picture("abc")), batcher.submit(picture("abcdefgh" * 4))
    for _ in range(3):  # chunks: all of the one prompt, and a part of the other
        batcher.step()
    long.cancel()
    batcher.run()
    assert torch.equal(short.result(), alone(batcher.engine, picture("abc")))


def test_whoever_waits_longest_is_next_also_where_others_would_fit():
    engine = engine_of()
    large, small_one = picture(grid=(12, 12)), text(most=1)
    batcher, order = Batcher(engine, memory=bytes_of(engine, large)), []
    for name, one in (("small", small_one), ("large", large), ("small again", small_one)):
        batcher.submit(one).add_done_callback(lambda _, name=name: order.append(name))
    batcher.run()
    assert order == ["small", "large", "small again"]


def test_more_slots_are_there_where_there_is_more_memory_and_what_never_fits_is_refused():
    engine, most = engine_of(), {}
    for slots in (1, 3):
        batcher = Batcher(engine, memory=slots * bytes_of(engine, picture()) + 1)
        tickets = [batcher.submit(picture(seed=seed)) for seed in range(5)]
        while batcher.step():
            most[slots] = max(most.get(slots, 0), batcher.running)
        assert all(ticket.done for ticket in tickets)
    assert most == {1: 1, 3: 3}
    with pytest.raises(RequestTooLarge, match="1000 may be used; ask for less"):
        Batcher(engine, memory=1000).submit(text())


def test_rows_and_texts_are_told_while_others_run():
    engine, rows, texts = engine_of(), {1: [], 4: []}, []
    batcher = Batcher(engine, slots=4)
    batcher.submit(picture(seed=9))
    drawn = [
        batcher.submit(
            picture(window=window), on_row=lambda row, codes, window=window: rows[window].append((row, codes))
        )
        for window in rows
    ]
    written = batcher.submit(text(seed=1, most=30), on_text=texts.append)
    batcher.run()
    for window, ticket in zip(rows, drawn, strict=True):
        assert [row for row, _ in rows[window]] == [0, 1, 2]
        assert torch.equal(torch.stack([codes for _, codes in rows[window]]), ticket.result())
    found = written.result()
    assert [len(ids) for ids in texts] == list(range(1, len(found) + 1)) and torch.equal(texts[-1], found)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize(("modality", "grid", "meta"), GRIDS[1:], ids=["image", "video"])
def test_rows_of_a_block_that_is_filled_in_are_told_when_their_last_hidden_cell_is_drawn(window, modality, grid, meta):
    noise, rows = torch.Generator().manual_seed(3), []
    hidden = torch.rand(grid, generator=noise) < 0.4
    hidden.flatten(0, -2)[[0, 2]] = False  # lines that are kept, the first among them
    hidden.flatten(0, -2)[1, -1] = True
    head, batcher = prompt(LAYOUT, "abc", modality, grid, meta), Batcher(engine_of())
    one = FillRequest(head, None, modality, grid, codes(grid, noise), hidden, Sampling(1.0, 1.0, 9), window=window)
    drawn = []
    ticket = batcher.submit(one, on_row=lambda row, line: (rows.append((row, line)), drawn.append(ticket.done)))
    batcher.run()
    found = ticket.result().flatten(0, -2)
    assert [row for row, _ in rows] == list(range(len(found))) and not any(drawn)
    assert torch.equal(torch.stack([line for _, line in rows]), found)


@pytest.mark.parametrize("at_once", [True, False])
def test_logits_that_are_not_numbers_end_their_request_alone(monkeypatch, at_once):
    """On a GPU they are looked at before anything that was drawn is given away, on a CPU as soon as they are there."""
    monkeypatch.setattr(cohort_module, "knows_at_once", lambda device: at_once)
    engine, rows = engine_of(), []
    (only,) = set(LAYOUT.encode_text("n"))
    expected = {words: alone(engine, picture(words)) for words in ("abc", "fed", "bed")}
    engine.model.model.embed_tokens.weight.data[only] = float("nan")
    batcher = Batcher(engine, slots=2)
    broken = batcher.submit(picture("n"), on_row=lambda *row: rows.append(row))
    tickets = {words: batcher.submit(picture(words)) for words in expected}
    batcher.run()
    with pytest.raises(BrokenLogits, match=f"token {len(picture('n').prompt)} hold NaN"):
        broken.result()
    assert rows == [] and all(torch.equal(tickets[words].result(), expected[words]) for words in expected)


def test_what_a_callback_raises_ends_its_request_alone():
    def refuse(*_):
        raise KeyError("full")

    batcher = Batcher(engine_of())
    failing, other = batcher.submit(picture(), on_row=refuse), batcher.submit(picture())
    batcher.run()
    assert torch.equal(other.result(), alone(batcher.engine, picture()))
    with pytest.raises(KeyError, match="full"):
        failing.result()


@pytest.mark.parametrize("steps", [0, 1], ids=["at the prompts", "later"])
def test_a_pass_that_fails_ends_what_runs_and_others_begin_anew(monkeypatch, steps):
    batcher = Batcher(engine_of(), slots=1)
    first, second = batcher.submit(picture()), batcher.submit(picture())
    for _ in range(steps):
        batcher.step()
    run = batcher.engine.model.forward_tokens

    def full(*arguments, **options):
        monkeypatch.setattr(batcher.engine.model, "forward_tokens", run)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(batcher.engine.model, "forward_tokens", full)
    batcher.run()
    with pytest.raises(torch.OutOfMemoryError):
        first.result()
    assert torch.equal(second.result(), alone(batcher.engine, picture()))


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_prompts_are_computed_once_and_common_beginnings_too(monkeypatch, short_chunks, deterministic):
    engine, computed = engine_of(deterministic), []
    engine.model.model.embed_tokens.register_forward_pre_hook(lambda _, ids: computed.append(ids[0].numel()))
    monkeypatch.setattr(prefill_module, "PREFILL_CHUNK", 1024)
    batcher, own, shared = Batcher(engine), len(picture("abcdefgh").prompt), len(picture("").prompt)
    batcher.submit(picture("abcdefgh", stream=0))
    batcher.submit(picture("abcdefgh", stream=1))
    batcher.step()
    assert computed == [own + shared]  # the prompt and the negative one
    computed.clear()
    batcher.submit(picture("abcdefgh", stream=2))
    batcher.step()
    assert computed == [2 * 2]  # the pass of the two that run
    computed.clear()
    batcher.submit(picture("abcdefmm"))
    batcher.step()
    assert computed == [
        3 * 2 + own - 1 - len("abcdef")
    ]  # what differs, in the pass of the others; the negative prompt is there


class Syncs(TorchDispatchMode):
    """Names of the operations that would wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_a_pass_over_pictures_waits_for_no_device(monkeypatch):
    """Of images of other sizes and prompts, in any of which a row may end, until codes are given away."""
    monkeypatch.setattr(cohort_module, "knows_at_once", lambda device: False)
    batcher = Batcher(engine_of(deterministic=False))
    for words, grid in (("abc", (3, 4)), ("", (4, 5)), ("fed", (5, 3))):
        batcher.submit(picture(words, grid))
    batcher.step()
    for _ in range(8):
        with Syncs() as syncs:
            batcher.step()
        assert not syncs.found


BAD = [
    (picture(window=0), ValueError, "window is 0"),
    (picture(seed=2**64), ValueError, "64 bits"),
    (replace(picture(), negative=None), ValueError, "guidance_scale is 3.0 and negative None"),
    (replace(picture(), prompt=torch.tensor([1, 999])), ValueError, "holds id 999"),
    (replace(picture(), prefix_codes=torch.zeros(1, 9, dtype=torch.int64)), ValueError, "prefix_codes has shape"),
    (replace(picture(), grid=(0, 4)), ValueError, "grid"),
    (replace(text(), sampling=Sampling(2.0)), ValueError, "without guidance"),
    (text(most=0), ValueError, "max_new_tokens"),
    (replace(text(), prompt=torch.zeros(512, dtype=torch.int64)), ValueError, "512 positions"),
    ("a ball", TypeError, "the request is str; expected a GridRequest"),
]


@pytest.mark.parametrize(("one", "kind", "words"), BAD, ids=[words for _, _, words in BAD])
def test_what_is_no_request_is_refused_before_any_work(one, kind, words):
    batcher = Batcher(engine_of())
    with pytest.raises(kind, match=words):
        batcher.submit(one)
    assert not batcher.step()


def test_a_block_without_hidden_cells_is_done_at_once():
    head, kept = prompt(LAYOUT, "a"), torch.ones(3, 4, dtype=torch.int64)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    ticket = Batcher(engine_of()).submit(FillRequest(head, None, "image", (3, 4), kept, nothing, Sampling()))
    assert ticket.done and torch.equal(ticket.result(), kept)
