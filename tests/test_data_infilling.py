"""Documents to be filled in: a share of any source's, by masks that follow from (seed, document), with lengths known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from emu.data import FunctionSource, ListSource
from emu.data.datamodule import MixtureDataModule
from emu.data.hidden_cells import hidden_cells
from emu.data.infilling import InfillShards, InfillSource
from emu.data.sharded import ShardData
from emu.data.shards import TokenizedDocument, TokenShards, write_manifest, write_shard
from emu.layouts import Emu3Layout
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import CONTROLS, HOLE, Vocabulary
from tests.shards_toys import LAYOUT as WITHOUT_HOLES
from tests.shards_toys import Letters, clip, picture, same, text

VOCABULARY = Vocabulary.build(300, {"vision": 512}, (*CONTROLS, HOLE))
LAYOUT = Emu3Layout(VOCABULARY, Letters())
GRIDS = [(2, 3), (1, 1), (8, 8), (3, 2, 2), (4, 1, 5), (1, 2, 2), (7,)]
SEGMENTS = [
    [text("a red circle", 0.1), picture(2, 3)],
    [text("it rolls"), clip(2, 2, 2)],
    [picture(2, 2, 7), text("What is it? ", 0.0), text("a square")],
    [picture(2, 3), text("then"), picture(4, 3, 50), text("the end")],
    [text("only words")],
    [picture(3, 3, weight=0.0), text("tall")],
]
DOCUMENTS = [LAYOUT.build(segments) for segments in SEGMENTS]


def write(folder, documents=DOCUMENTS, fingerprints=None, vocabulary=VOCABULARY):
    made = []
    for document in documents:
        first = document.spans[0]
        made.append(TokenizedDocument(document, (first.start, first.length) if first.modality == "text" else (0, 0)))
    write_shard(folder, 0, made[:4], vocabulary, {})
    write_shard(folder, 1, made[4:], vocabulary, {})
    write_manifest(folder, 2, vocabulary, fingerprints or {"vocabulary": vocabulary.fingerprint, "text": "a"})
    return str(folder)


@pytest.mark.parametrize("grid", GRIDS)
def test_masks_are_of_every_kind_and_follow_from_the_key(grid):
    masks = [hidden_cells(grid, key) for key in range(200)]
    assert all(mask.shape == grid and mask.dtype == bool and mask.any() for mask in masks)
    assert all(np.array_equal(mask, hidden_cells(grid, key)) for key, mask in enumerate(masks[:20]))
    if len(grid) == 3 and grid[0] > 1:
        frames = [mask.all(axis=(1, 2)) for mask in masks if (mask.all(axis=(1, 2)) == mask.any(axis=(1, 2))).all()]
        given = {(bool(not one[0]), bool(not one[-1])) for one in frames if not one.all()}
        assert {(True, False), (False, True)} <= given and ((True, True) in given or grid[0] == 2)
    if grid == (8, 8):
        assert all(0.005 < np.mean([mask[place] for mask in masks]) < 0.995 for place in np.ndindex(grid))
        assert 0.25 < np.mean(masks) < 0.55


def test_tokens_are_moved_with_their_weights_and_nothing_else_changes():
    for number, document in enumerate(DOCUMENTS):
        source = InfillSource(ListSource(DOCUMENTS), LAYOUT, 1.0, row_length=64)
        for key in range(12):
            found = source.document(number, key)
            assert same(found, source.document(number, key))
            if number >= 4:  # no picture, or one that is only looked at
                assert same(found, document)
                continue
            read, plain = LAYOUT.parse(found.ids), LAYOUT.parse(document.ids)
            hidden = [getattr(segment, "hidden", None) for segment in read]
            assert [one is not None for one in hidden] == [i == max(_blocks(plain)) for i in range(len(plain))]
            assert all(torch.equal(read[i].codes, plain[i].codes) for i in _blocks(plain))
            assert len(found) == len(document) + 1 + int(hidden[max(_blocks(plain))].sum())
            holes = found.ids == LAYOUT.hole
            assert not found.weights[holes].any() and torch.isclose(found.weights.sum(), document.weights.sum())


def _blocks(segments):
    return [number for number, segment in enumerate(segments) if hasattr(segment, "codes")]


def test_the_share_is_that_of_the_documents_and_too_long_ones_stay_as_they_are():
    def number_filled(share, row_length=64):
        source = InfillSource(FunctionSource(lambda index, key: DOCUMENTS[0], 9, 30), LAYOUT, share, row_length)
        assert source.max_length == min(61, row_length)
        found = [source.document(0, key) for key in range(300)]
        assert max(map(len, found)) <= row_length
        return sum(bool((document.ids == LAYOUT.hole).any()) for document in found)

    assert number_filled(0.0) == 0 and number_filled(1.0) == 300
    assert 60 < number_filled(0.3) < 120
    assert number_filled(1.0, row_length=len(DOCUMENTS[0]) + 1) == 0
    assert 0 < number_filled(1.0, row_length=len(DOCUMENTS[0]) + 3) < 300


@pytest.mark.parametrize("row_length, long_documents", [(64, "refuse"), (40, "cut"), (30, "drop")])
def test_shards_know_the_lengths_beforehand(tmp_path, row_length, long_documents):
    shards = TokenShards(write(tmp_path), 0.4, row_length=row_length, long_documents=long_documents)
    source = InfillShards(shards, LAYOUT, 0.6, row_length)
    numbers, keys = np.repeat(np.arange(len(source)), 60), np.arange(60 * len(source)) * 77 + 5
    found = [source.document(number, key) for number, key in zip(numbers.tolist(), keys.tolist(), strict=True)]
    lengths, planned = np.array([*map(len, found)]), source.token_lengths(numbers, keys)
    assert source.modalities == ("image", "video")
    seen = lengths == planned
    assert (lengths <= planned).all() and seen[numbers != len(source) - 1].all()  # the last one's codes weigh nothing
    assert (planned <= source.lengths()[numbers]).all() and planned.max() <= source.max_length <= row_length
    assert planned[7] == source.length(int(numbers[7]), int(keys[7]))
    assert abs(source.mean_length / planned.mean() - 1) < 0.04
    assert source.identity != InfillShards(shards, LAYOUT, 0.5, row_length).identity


def test_shards_of_a_recipe(tiny_emu, tmp_path):
    ours = tiny_emu.tokenizer
    tokenizer = MultimodalTokenizer(ours.text, ours.vision, extra_controls=(HOLE,))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    block = [segment for segments in SEGMENTS[:4] for segment in segments if hasattr(segment, "codes")]
    words = tokenizer.segments("a red circle")
    documents = []
    for segment in block:
        segment.codes.remainder_(16)
        documents.append(tokenizer.layout.build([*words, segment]))
    folder = write(tmp_path / "shards", documents, tokenizer.fingerprints, tokenizer.vocabulary)
    options = {
        "documents_per_step": {"mine": 6},
        "row_length": 80,
        "tokenizer": str(tmp_path / "tokenizer"),
        "infill": 0.5,
    }
    data = ShardData({"mine": folder}, validation={"held": folder}, **options)
    assert data.source_problems() == []
    batches = [batch for _, batch in zip(range(3), data.train_dataloader(), strict=False)]
    again = [
        batch for _, batch in zip(range(3), ShardData({"mine": folder}, **options).train_dataloader(), strict=False)
    ]
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(batches, again, strict=True))
    holes = batches[0].input_ids == tokenizer.layout.hole
    assert holes.any() and not batches[0].loss_weights[holes].any()
    assert not any((batch.input_ids == tokenizer.layout.hole).any() for batch in data.val_dataloader())
    data.save_pretrained(tmp_path / "tokenizer")
    trained = json.loads((tmp_path / "tokenizer" / "emu.json").read_text())["trained"]
    assert trained["tasks"][-2:] == ["image_infill", "video_infill"] and trained["context"] > max(map(len, documents))


def test_what_infill_needs_is_said_before_the_first_step(tmp_path):
    folder = write(tmp_path / "shards")
    options = {"rows_per_step": 3, "row_length": 80, "infill": 0.5}
    (problem,) = ShardData({"mine": folder}, **options).source_problems()
    assert problem == "infill is 0.5, and how the documents are written is not known; name data.tokenizer"
    (problem,) = ShardData({"mine": folder}, rows_per_step=3, row_length=80, infill=1.5).problems(None)
    assert problem == "infill is 1.5; expected a share in [0, 1]"
    with pytest.raises(ValueError, match=r"the vocabulary of these documents has none; .*extra_controls=\('hole',\)"):
        InfillSource(ListSource(DOCUMENTS), WITHOUT_HOLES, 0.5, 64)


class Drawn(MixtureDataModule):
    """Pictures drawn when they are asked for."""

    vocabulary, document_layout = VOCABULARY, LAYOUT

    def training_sources(self):
        return {"mine": FunctionSource(lambda index, key: DOCUMENTS[index % 4], 8, max_length=40)}


def test_documents_made_on_demand_go_the_same_way():
    data = Drawn({"mine": 6}, 96, infill=0.5)
    assert data.source_problems() == []
    batch = next(iter(data.train_dataloader()))
    assert (batch.input_ids == LAYOUT.hole).any()
    plain = next(iter(Drawn({"mine": 6}, 96).train_dataloader()))
    assert not (plain.input_ids == LAYOUT.hole).any()
