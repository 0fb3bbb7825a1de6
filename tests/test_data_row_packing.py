"""Thousands of documents into a fixed number of rows."""

import numpy as np
import pytest

from emu.data.row_packing import LEFT_OUT, fill_empty_rows, pack_block
from emu.packing import plan_rows
from tests.row_toys import draw_lengths


def used(rows, lengths, num_rows):
    return np.bincount(rows[rows >= 0], weights=lengths[rows >= 0], minlength=num_rows)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_of_best_fit_decreasing_one_document_at_a_time(seed):
    lengths = draw_lengths(int(np.random.default_rng(seed).integers(1, 400)), seed)
    for row_length in (int(lengths.max()), 300, 1000):
        rows = pack_block(lengths, row_length)
        wanted = plan_rows(lengths.tolist(), row_length)
        assert [sorted(row) for row in wanted] == [np.flatnonzero(rows == r).tolist() for r in range(len(wanted))]


def test_what_no_row_has_room_for_is_left_out_and_nothing_else():
    lengths = draw_lengths(2000)
    needed = int(pack_block(lengths, 256).max()) + 1
    rows = pack_block(lengths, 256, needed - 9)
    space = 256 - used(rows, lengths, needed - 9)
    assert (rows == LEFT_OUT).sum() > 0 and lengths[rows == LEFT_OUT].min() > space.max() >= 0
    assert (pack_block(lengths, 256, needed + 9) >= 0).all()


def test_documents_that_do_not_fit_into_any_row_are_refused():
    with pytest.raises(ValueError, match="documents have 3 to 9 tokens; expected 1 to 8"):
        pack_block(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="documents have 0 to 5"):
        pack_block(np.array([5, 0]), 8)
    assert len(pack_block(np.empty(0, np.int64), 8)) == 0


def test_rows_without_documents_get_some_of_the_fullest():
    lengths = draw_lengths(500)
    needed = int(pack_block(lengths, 256).max()) + 1
    rows = fill_empty_rows(pack_block(lengths, 256, needed + 20), needed + 20)
    assert (np.bincount(rows, minlength=needed + 20) > 0).all()
    assert used(rows, lengths, needed + 20).max() <= 256 and used(rows, lengths, needed + 20).sum() == lengths.sum()
    full = np.array([8, 8])
    assert fill_empty_rows(pack_block(full, 8, 4), 4).tolist() == [0, 1], "a document is never cut"
    some = np.array([LEFT_OUT, 0, 0, LEFT_OUT, 0])
    assert fill_empty_rows(some, 2).tolist() == [LEFT_OUT, 0, 0, LEFT_OUT, 1]
