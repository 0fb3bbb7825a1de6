"""Rows by number: blocks of documents in rows of a fixed number, mixed by weights."""

import numpy as np
import pytest

from emu.data.balanced_order import BalancedOrder
from emu.data.block_mixture import BLOCK_DOCUMENTS, BlockMixture
from tests.row_toys import Lengths, draw_lengths


def documents_of(mixture, blocks):
    """(source, number, key) of every document of some blocks, and how many were left out."""
    plans = [mixture.plan(block) for block in blocks]
    columns = [np.concatenate([getattr(plan, name) for plan in plans]) for name in ("sources", "numbers", "keys")]
    return np.stack(columns, axis=1), sum(plan.left_out for plan in plans)


@pytest.mark.parametrize("size", [1, 2, 7, 63, 64, 65, 1000, 4099])
def test_an_order_holds_every_document_once_an_epoch_and_differs_between_epochs(size):
    order = BalancedOrder(draw_lengths(size), key=3)
    epochs = order(np.arange(3 * size)).reshape(3, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 7 or (epochs[0] != epochs[1]).any()
    at = np.arange(size // 2, size + size // 2)
    assert (order(at) == order(np.arange(2 * size))[at]).all(), "any place is found without those before it"


@pytest.mark.parametrize("stretch", [500, 4000, 16384])
def test_every_stretch_of_an_order_has_the_mean_length(stretch):
    lengths = draw_lengths(30_011)
    order = BalancedOrder(lengths, key=1)
    plain = np.random.default_rng(0).permutation(lengths)
    starts = range(0, 60_000, 1777)
    ours = [lengths[order(start + np.arange(stretch))].mean() for start in starts]
    random = [np.take(plain, start + np.arange(stretch), mode="wrap").mean() for start in starts]
    assert np.std(ours) < 0.2 * np.std(random) and abs(np.mean(ours) / lengths.mean() - 1) < 1e-3


def test_neighbours_of_one_epoch_are_not_those_of_the_next():
    order = BalancedOrder(np.full(5000, 10), key=0)
    first, second = order(np.arange(10_000)).reshape(2, 5000)
    pairs = {tuple(pair) for pair in zip(first, first[1:], strict=False)}
    assert sum(tuple(pair) in pairs for pair in zip(second, second[1:], strict=False)) < 250


def test_an_epoch_holds_every_document_once_or_counts_it_as_left_out():
    sources = {"a": Lengths(draw_lengths(2 * BLOCK_DOCUMENTS))}
    found, left_out = documents_of(BlockMixture(sources, 256, 8), range(2))
    assert len(found) + left_out == 2 * BLOCK_DOCUMENTS and left_out <= 0.01 * len(found)
    assert len(np.unique(found[:, 1])) == len(found) and len(np.unique(found[:, 2])) == len(found)


def test_a_small_source_comes_again_only_after_all_of_it():
    mixture = BlockMixture({"a": Lengths(draw_lengths(100))}, 256, 8)
    found, left_out = documents_of(mixture, range(3))
    counts = np.bincount(found[:, 1], minlength=100)
    assert counts.sum() + left_out == 3 * BLOCK_DOCUMENTS
    assert counts.max() <= -(-3 * BLOCK_DOCUMENTS // 100) and counts.max() - counts.min() <= 1 + left_out


def test_every_block_has_equally_many_rows_which_are_full():
    mixture = BlockMixture({"a": Lengths(3 + draw_lengths(50_000), dropped=3)}, 256, 8)
    plans = [mixture.plan(block) for block in range(6)]
    (rows,) = {len(plan.starts) - 1 for plan in plans}
    for plan in plans:
        assert plan.tokens > 0.98 * rows * 256 and plan.left_out < 0.005 * BLOCK_DOCUMENTS
        lengths = mixture.sources["a"].token_lengths(plan.numbers, plan.keys)
        sums = np.add.reduceat(lengths, plan.starts[:-1])
        assert (np.diff(plan.starts) > 0).all() and sums.max() <= 256 and sums.sum() == plan.tokens
        # rows of long documents are not all at one end of a block
        assert abs(lengths[: len(lengths) // 4].mean() / lengths.mean() - 1) < 0.1


def test_rows_are_a_pure_function_of_seed_and_number():
    def plan(seed, block=3):
        return BlockMixture({"a": Lengths(draw_lengths(9000))}, 256, 8, seed=seed).plan(block)

    assert all(np.array_equal(x, y) for x, y in zip(plan(1), plan(1), strict=True))
    assert not np.array_equal(plan(1).numbers, plan(2).numbers)
    assert not np.array_equal(plan(1).numbers, plan(1, 4).numbers)


def shares(mixture, blocks):
    """Share of each source in the tokens of blocks."""
    tokens = dict.fromkeys(mixture.names, 0)
    for block in blocks:
        plan = mixture.plan(block)
        for number, name in enumerate(mixture.names):
            part = plan.sources == number
            tokens[name] += int(mixture.sources[name].token_lengths(plan.numbers[part], plan.keys[part]).sum())
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def two_sources():
    return {"short": Lengths(np.full(5000, 10)), "long": Lengths(np.full(3000, 100))}


def test_weights_are_shares_of_the_tokens():
    found = shares(BlockMixture(two_sources(), 256, 8, {"short": 0.7, "long": 0.3}), range(2))
    assert abs(found["short"] - 0.7) < 0.002
    found = shares(BlockMixture(two_sources(), 256, 8), range(2))
    assert abs(found["short"] - 50 / 350) < 0.002, "without weights every source is gone through equally often"
    alone = BlockMixture(two_sources(), 256, 8, {"long": 2.0})
    assert alone.names == ("long",) and shares(alone, [0]) == {"long": 1.0}


def test_weights_change_at_the_stated_step_which_begins_a_block():
    weights = [{"short": 1.0}, {"from_step": 300, "short": 1.0, "long": 1.0}, {"from_step": 1301, "long": 1.0}]
    mixture = BlockMixture(two_sources(), 256, 8, weights)
    for step, wanted in ((0, 1.0), (299, 1.0), (300, 0.5), (1300, 0.5), (1301, 0.0), (9999, 0.0)):
        block, _ = mixture.locate(8 * step)
        assert abs(shares(mixture, [block])["short"] - wanted) < 0.02, step
    for step in (300, 1301):
        block, place = mixture.locate(8 * step)
        assert place == 0 and mixture.locate(8 * step - 1) == (block - 1, len(mixture.plan(block - 1).starts) - 2)
    rows = [mixture.locate(row) for row in range(8 * 1400)]
    assert all(b == (a[0], a[1] + 1) or b == (a[0] + 1, 0) for a, b in zip(rows, rows[1:], strict=False))
    found, left_out = documents_of(mixture, range(mixture.locate(8 * 1301)[0] + 1))
    short = np.bincount(found[found[:, 0] == 0][:, 1], minlength=5000)
    assert short.max() - short.min() <= 1 + left_out, "a source goes on where the stage before left it"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"short": 1.0, "other": 1.0}, r"weights names the unknown sources \['other'\]; there are \['long', 'short'\]"),
        ({"short": -1.0}, r"weights has {'short': -1.0}; expected finite numbers of 0 or more"),
        ({"short": float("nan")}, "expected finite numbers"),
        ({"short": 0.0, "long": 0.0}, "weights has no weight above 0"),
        ([], "weights is an empty list"),
        ([{"from_step": 5, "short": 1.0}], "weights begin at step 5; set the first from_step to 0"),
        ([{"short": 1.0}, {"from_step": 9, "long": 1.0}, {"from_step": 9, "short": 1.0}], "must rise; it is 9 after 9"),
        ([{"short": 1.0}, {"from_step": 2.5, "long": 1.0}], r"weights\[1\] has from_step 2.5"),
        ({"short": 1.0, "long": 1e-9}, r"weights of \['long'\] from step 0 come to less than one document in 16384"),
    ],
)
def test_weights_that_cannot_be_drawn_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        BlockMixture(two_sources(), 256, 8, weights)


@pytest.mark.slow
def test_a_million_documents_of_the_usual_lengths_fill_rows_of_any_length():
    lengths = np.clip(draw_lengths(1_000_000, longest=2048) * 8, 1, 2048)
    for row_length, use in ((2048, 0.98), (8192, 0.995)):
        mixture = BlockMixture({"a": Lengths(lengths)}, row_length, 64)
        plans = [mixture.plan(block) for block in range(-(-len(lengths) // BLOCK_DOCUMENTS))]
        left_out = sum(plan.left_out for plan in plans)
        positions = sum((len(plan.starts) - 1) * row_length for plan in plans)
        assert sum(plan.tokens for plan in plans) / positions >= use and left_out <= 0.01 * len(lengths)
        found = np.concatenate([plan.numbers for plan in plans])
        assert np.bincount(found[: 60 * BLOCK_DOCUMENTS]).max() == 1
