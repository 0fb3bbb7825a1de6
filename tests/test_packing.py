import random

import pytest
import torch

from emu.data import pack, plan_rows
from emu.documents import TokenDocument


def make_documents(lengths):
    return [
        TokenDocument(torch.arange(length) + 1000 * i + 1, torch.full((length,), 0.5 + i))
        for i, length in enumerate(lengths)
    ]


def random_lengths(seed, row_length):
    generator = random.Random(seed)
    return [generator.randint(1, row_length) for _ in range(generator.randint(1, 60))]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_cut_or_mixed(seed):
    documents = make_documents(random_lengths(seed, 40))
    packed = pack(documents, 40, source_ids=list(range(len(documents))), pad_token_id=7)
    found = {}
    for r in range(len(packed.input_ids)):
        for segment in range(1, int(packed.segment_ids[r].max()) + 1):
            where = packed.segment_ids[r] == segment
            (positions,) = torch.nonzero(where, as_tuple=True)
            assert torch.equal(positions, torch.arange(positions[0], positions[-1] + 1))
            (source,) = packed.source_ids[r][where].unique().tolist()
            found[source] = (packed.input_ids[r][where], packed.labels[r][where], packed.loss_weights[r][where])
    assert sorted(found) == list(range(len(documents)))
    for i, document in enumerate(documents):
        ids, labels, weights = found[i]
        assert torch.equal(ids, document.ids) and torch.equal(labels, document.ids)
        assert weights[0] == 0 and torch.equal(weights[1:], document.weights[1:])


def test_padding_is_marked_everywhere():
    packed = pack(make_documents([3, 2]), 8, pad_token_id=9)
    assert packed.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    assert packed.input_ids[0, 5:].tolist() == [9, 9, 9] and packed.labels[0, 5:].tolist() == [-100] * 3
    assert packed.loss_weights[0, 5:].tolist() == [0.0] * 3 and packed.source_ids[0, 5:].tolist() == [-1] * 3


@pytest.mark.parametrize("seed", range(10))
def test_no_two_rows_could_be_one(seed):
    lengths = random_lengths(seed + 100, 64)
    used = sorted(sum(lengths[i] for i in row) for row in plan_rows(lengths, 64))
    assert used[-1] <= 64
    assert len(used) < 2 or used[0] + used[1] > 64


def test_the_smallest_hole_that_fits_is_taken():
    assert plan_rows([10, 7, 3, 5, 5], 10) == [[0], [1, 2], [3, 4]]


def test_many_short_documents_fill_rows_completely():
    lengths = [1 + i % 13 for i in range(400)]
    rows = plan_rows(lengths, 64)
    assert len(rows) == -(-sum(lengths) // 64)


def test_empty_rows_fill_up_to_a_multiple():
    packed = pack(make_documents([8, 8, 8]), 8, multiple=4)
    assert packed.input_ids.shape == (4, 8) and packed.segment_ids[3].sum() == 0


def test_documents_that_cannot_be_packed_are_all_named():
    with pytest.raises(ValueError, match=r"1 to 8 tokens.*1 \(9 tokens\), 2 \(12 tokens\)"):
        plan_rows([8, 9, 12], 8)
    with pytest.raises(ValueError, match=r"0 \(0 tokens\)"):
        plan_rows([0], 8)


def test_passes_hold_every_row_once_without_columns_of_padding():
    documents = make_documents([9, 4, 3, 3, 2])
    packed = pack(documents, 12, source_ids=range(len(documents)))
    parts = list(packed.passes(1))
    assert len(parts) == len(packed.input_ids) == 2
    for r, part in enumerate(parts):
        used = int((packed.segment_ids[r] > 0).sum())
        for ours, whole in zip(part, packed, strict=True):
            assert torch.equal(ours[0], whole[r, :used])
    (together,) = packed.to("cpu").passes(8)
    assert together.input_ids.shape == (2, 12)


def test_source_ids_can_number_the_documents():
    documents = make_documents([5, 4, 3])
    packed = pack(documents, 8, source_ids=range(3))
    for i, document in enumerate(documents):
        assert packed.input_ids[packed.source_ids == i].tolist() == document.ids.tolist()
