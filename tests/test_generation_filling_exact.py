"""A small world of which every conditional is known: what the engine fills in follows it, and drawing in order does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from emu.data import FunctionSource, pack
from emu.data.infilling import InfillSource
from emu.documents import CodeSegment
from emu.evaluation.statistics import chi_square
from emu.generation import Engine
from emu.layouts import Emu35Layout
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import CONTROLS, HOLE, Vocabulary
from tests.engine_toys import Letters, small

GRID, COLOURS = (2, 2), 4
VOCABULARY = Vocabulary.build(31, {"vision": COLOURS}, (*CONTROLS, HOLE))
LAYOUT = Emu35Layout(VOCABULARY, Letters())
STATES = np.array(list(itertools.product(range(COLOURS), repeat=4)))  # (256, 4) all pictures
MASKS = {
    "one cell": [[1, 0], [0, 0]],
    "the upper row": [[1, 1], [0, 0]],
    "the left column": [[1, 0], [1, 0]],
    "all but the last": [[1, 1], [1, 0]],
}


def odds() -> np.ndarray:
    """(256,) probabilities of the pictures: every pair of neighbours has couplings of its own."""
    draw = np.random.default_rng(4)
    energy = np.zeros(len(STATES))
    for one, other in [(0, 1), (2, 3), (0, 2), (1, 3)]:
        energy += draw.normal(0, 1.3, (COLOURS, COLOURS))[STATES[:, one], STATES[:, other]]
    weights = np.exp(energy)
    return weights / weights.sum()


ODDS = odds()


class TableModel(EmuForCausalLM):
    """The transformer that knows the world: its hidden states are the true log-odds of the next code.

    What a row has read lies where keys would, so that the engine copies it, aligns it and reads it as it does with keys.
    """

    def __init__(self):
        size = VOCABULARY.size
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": size, "num_hidden_layers": 1}
        super().__init__(EmuConfig(vocab_size=size, hidden_size=size, intermediate_size=8, **heads))
        self.lm_head.weight.data = torch.eye(size)

    def forward_tokens(self, input_ids, cache, linear=None, *, by_row=False):
        cache.begin(input_ids.shape[1])
        for row, (end, count) in enumerate(zip(cache.ends, cache.counts, strict=True)):
            cache.keys[0][row, 0, end : end + count, 0] = input_ids[row, :count].float()
        counts = list(cache.counts)
        cache.commit()
        hidden, first = torch.zeros(sum(counts), VOCABULARY.size), 0
        for row, (begin, end, count) in enumerate(zip(cache.begins, cache.ends, counts, strict=True)):
            first += count
            if count:
                hidden[first - 1] = next_code(cache.keys[0][row, 0, begin:end, 0].long().tolist())
        return hidden


def next_code(ids):
    """(size,) log-odds of the code after a document that ends in cells, or in a block with holes and what fills them."""
    first, _ = VOCABULARY.range("vision")
    shown = [
        index for index in ids[ids.index(VOCABULARY.control("image")) + 1 :] if index >= first or index == LAYOUT.hole
    ]
    block, filled = shown[: len(STATES[0])], shown[len(STATES[0]) :]
    holes = [place for place, index in enumerate(block) if index == LAYOUT.hole]
    cells = {place: index for place, index in enumerate(block) if index != LAYOUT.hole} | dict(
        zip(holes, filled, strict=False)
    )
    place = holes[len(filled)] if len(filled) < len(holes) else len(block)
    odds = ODDS * np.all([STATES[:, cell] == index - first for cell, index in cells.items()], axis=0)
    log_odds = torch.zeros(VOCABULARY.size)
    if place < len(STATES[0]):
        log_odds[first:] = torch.from_numpy(np.log(np.bincount(STATES[:, place], weights=odds, minlength=COLOURS)))
    return log_odds


def prompt():
    return torch.tensor([VOCABULARY.control("bos"), *LAYOUT.header("image", GRID)])


def hidden_of(name):
    return torch.tensor(MASKS[name], dtype=torch.bool)


def compare(hidden, kept, found):
    """Chi-square of the hidden cells of pictures (n, *grid) with some kept cells against the exact odds; rare outcomes as one."""
    flat = hidden.flatten().numpy()
    consistent = (STATES[:, ~flat] == kept.flatten().numpy()[~flat]).all(1)
    odds, outcomes = ODDS[consistent] / ODDS[consistent].sum(), STATES[consistent]
    drawn = found.reshape(-1, 1, flat.size).numpy()
    counts = (drawn == outcomes).all(2).sum(0)
    assert counts.sum() == len(drawn)  # nothing else was drawn
    order = np.argsort(odds)
    expected = np.cumsum(odds[order]) * len(drawn)
    joined = max(int((odds * len(drawn) < 5).sum()), 1 + int((expected < 5).sum()))
    rare, others = order[:joined], order[joined:]
    return chi_square(np.append(counts[others], counts[rare].sum()), np.append(odds[others], odds[rare].sum()))


def kept_pictures(hidden, count=3):
    """The likeliest ways in which the cells that are not hidden can look, each with all of the other cells as they come."""
    drawn = np.random.default_rng(1).choice(len(STATES), 60, p=ODDS)
    seen = {tuple(STATES[state][~hidden.flatten().numpy()]): STATES[state] for state in drawn}
    return torch.from_numpy(np.stack(list(seen.values())[:count])).view(-1, *GRID)


def test_what_is_filled_in_follows_the_exact_odds_of_what_is_hidden_given_what_is_kept():
    engine, p_values = Engine(TableModel(), LAYOUT), []
    for name in MASKS:
        hidden = hidden_of(name)
        kept = kept_pictures(hidden)
        found = engine.fill_codes(
            [prompt()] * len(kept), kept, hidden[None], guidance_scale=1.0, top_k=0, seed=range(len(kept)), streams=200
        ).unflatten(0, (len(kept), 200))
        assert torch.equal(found[:, :, ~hidden], kept[:, None, ~hidden].expand(-1, 200, -1))
        p_values += [compare(hidden, one, drawn).p_value for one, drawn in zip(kept, found, strict=True)]
    assert min(p_values) > 0.001 / len(p_values)  # Holm's first step


def test_drawing_in_order_and_writing_the_kept_cells_over_it_does_not():
    engine = Engine(TableModel(), LAYOUT)
    for name in MASKS:
        hidden = hidden_of(name)
        exact, overwritten = exact_log_conditional(hidden), raster_log_conditional(hidden)
        assert (ODDS * (exact - overwritten)).sum() > 0.3  # nats a picture, of a model without any fault of its own
    drawn = engine.generate_codes([prompt()], grid=GRID, guidance_scale=1.0, top_k=0, streams=400)
    assert (
        chi_square(np.bincount(drawn[:, 0, 0], minlength=COLOURS), np.bincount(STATES[:, 0], weights=ODDS)).p_value
        > 0.001
    )
    hidden = hidden_of("the upper row")
    kept = kept_pictures(hidden, 1)
    assert compare(hidden, kept[0], torch.where(hidden, drawn, kept)).p_value < 1e-6


@pytest.fixture(scope="module")
def model():
    """Trained on pictures of the world, most of them with cells hidden, by the source that recipes use."""
    documents = [LAYOUT.build([CodeSegment("image", torch.from_numpy(state).view(GRID))]) for state in STATES]
    drawn = np.random.default_rng(0)
    source = InfillSource(FunctionSource(lambda index, key: documents[index], len(STATES)), LAYOUT, 0.85, 64)
    model = small(VOCABULARY, hidden_size=32, intermediate_size=96, initializer_range=0.06, qk_norm=True).train()
    steps, optimizer = 700, torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.05)
    for step in range(steps):
        states = drawn.choice(len(STATES), 96, p=ODDS)
        packed = pack([source.document(state, 96 * step + n) for n, state in enumerate(states)], 128)
        out = model(
            packed.input_ids,
            labels=packed.labels,
            loss_weights=packed.loss_weights,
            segment_ids=packed.segment_ids,
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


@torch.no_grad()
def log_conditional(model, hidden):
    """(256,) log-probability, in nats, that the model gives the hidden cells of each picture given the others."""
    codes = [CodeSegment("image", torch.from_numpy(state).view(GRID), hidden=hidden) for state in STATES]
    ids = torch.stack([LAYOUT.build([segment], add_special=False).ids for segment in codes])
    ids = torch.cat([torch.full((len(ids), 1), VOCABULARY.control("bos")), ids], 1)
    first, count = VOCABULARY.range("vision")
    logits = model(ids).logits[:, :-1, first : first + count].log_softmax(-1)
    number = int(hidden.sum())
    places = slice(ids.shape[1] - 2 - number, ids.shape[1] - 2)  # what predicts the codes before the last EOI
    targets = ids[:, ids.shape[1] - 1 - number : -1] - first
    return logits[:, places].gather(-1, targets[..., None])[..., 0].sum(1).double().numpy()


def exact_log_conditional(hidden):
    """(256,) the same of the world itself."""
    kept = STATES[:, ~hidden.flatten().numpy()]
    _, number = np.unique(kept, axis=0, return_inverse=True)
    number = number.reshape(-1)
    return np.log(ODDS) - np.log(np.bincount(number, weights=ODDS)[number])


def raster_log_conditional(hidden):
    """(256,) the same of drawing in raster order, as the world would, and writing the kept cells over what was drawn there."""
    total = np.zeros(len(STATES))
    for place in hidden.flatten().nonzero()[:, 0].tolist():
        for length, sign in ((place + 1, 1), (place, -1)):
            _, number = np.unique(STATES[:, :length], axis=0, return_inverse=True)
            number = number.reshape(-1)
            total += sign * np.log(np.bincount(number, weights=ODDS)[number])
    return total


@pytest.mark.slow
def test_a_trained_model_spends_few_nats_more_than_the_floor(model):
    for name in MASKS:
        hidden = hidden_of(name)
        exact = exact_log_conditional(hidden)
        floor = -(ODDS * exact).sum()
        excess = (ODDS * (exact - log_conditional(model, hidden))).sum()
        raster = (ODDS * (exact - raster_log_conditional(hidden))).sum()
        assert -1e-6 < excess < 0.1 * floor and excess < raster / 2, (name, floor, excess, raster)
