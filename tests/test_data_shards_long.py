"""Documents that are longer than a row: refused, left out, or cut at the borders of their segments."""

import logging
import pickle
import random

import pytest
import torch

from emu.data.sharded import ShardData
from emu.data.shards import TokenShards
from tests.shards_toys import LAYOUT, VOCABULARY, clip, laid_out, make_album, make_documents, picture, same, text, write

BOS, EOS = VOCABULARY.control("bos"), VOCABULARY.control("eos")


def cut(tmp_path, documents, row_length, dropout=0.0):
    shards = TokenShards(write(tmp_path / "shards", documents), dropout, row_length=row_length, long_documents="cut")
    return shards, [shards.document(i, 0) for i in range(len(shards))]


def random_documents(seed):
    draw = random.Random(seed)
    segments = [
        lambda: text("w" * draw.randint(1, 40), draw.choice([0.0, 1.0])),
        lambda: picture(draw.randint(1, 4), draw.randint(1, 4), draw.randint(0, 400)),
        lambda: clip(draw.randint(1, 2), 2, 2),
    ]
    return [laid_out(*(draw.choice(segments)() for _ in range(draw.randint(1, 9)))) for _ in range(12)]


@pytest.mark.parametrize("seed", range(15))
def test_pieces_hold_every_token_once_and_every_block_whole(seed, tmp_path):
    documents = random_documents(seed)
    row_length = 45  # more than any block
    shards, pieces = cut(tmp_path, documents, row_length)
    assert max(map(len, pieces)) <= row_length == max(shards.max_length, row_length)
    assert [shards.length(i, 0) for i in range(len(shards))] == shards.lengths().tolist() == list(map(len, pieces))
    assert all(int(piece.ids[0]) == BOS for piece in pieces)
    rest = iter(pieces)
    for document in documents:
        joined = next(rest)
        while len(joined) < len(document.document):
            more = next(rest)
            joined = type(joined)(torch.cat([joined.ids, more.ids[1:]]), torch.cat([joined.weights, more.weights[1:]]))
        assert same(joined, document.document)
    assert next(rest, None) is None
    for piece in pieces:
        LAYOUT.parse(piece.ids)  # raises where a block was cut


def test_segments_stay_together_as_far_as_a_row_goes(tmp_path):
    document = laid_out(text("a" * 10), picture(2, 3), text("b" * 10), picture(2, 3), text("c"))
    _, pieces = cut(tmp_path, [document], 30)
    assert [[type(segment).__name__ for segment in LAYOUT.parse(piece.ids)] for piece in pieces] == [
        ["TextSegment", "CodeSegment"],
        ["TextSegment", "CodeSegment", "TextSegment"],
    ]
    assert int(pieces[-1].ids[-1]) == EOS and EOS not in pieces[0].ids.tolist()


def test_text_longer_than_a_row_is_cut_evenly_and_a_longer_block_is_left_out(tmp_path):
    shards, pieces = cut(
        tmp_path, [laid_out(text("t" * 70)), laid_out(text("before"), picture(6, 6), text("after"))], 31
    )
    assert [len(piece) for piece in pieces[:3]] == [24, 25, 25]
    words = [LAYOUT.decode_text([index for index in piece.ids.tolist() if index < 300]) for piece in pieces[3:]]
    assert words == ["before", "after"]
    assert (
        "2 of 2 documents are longer than a row of 31 tokens and are cut into 5 pieces; blocks of codes that"
        in shards.describe_long_documents()
    )
    only, _ = cut(tmp_path / "only", [laid_out(picture(6, 6)), laid_out(text("x"))], 31)
    assert len(only) == 1 and "nothing is left: 1" in only.describe_long_documents()


def test_a_caption_is_left_out_of_the_piece_that_holds_it(tmp_path):
    document = laid_out(text("a caption"), picture(2, 3), text("and more" * 2), caption=0)
    _, kept = cut(tmp_path, [document], 27)
    shards, bare = cut(tmp_path / "bare", [document], 27, dropout=1.0)
    assert len(kept) == len(bare) == 2
    assert [len(LAYOUT.parse(piece.ids)) for piece in kept] == [2, 1]
    assert [len(LAYOUT.parse(piece.ids)) for piece in bare] == [1, 1]
    assert [shards.length(i, 0) for i in range(2)] == list(map(len, bare))
    later = laid_out(text("t" * 20), text("a caption"), picture(2, 3), caption=1)
    _, pieces = cut(tmp_path / "later", [later], 28, dropout=1.0)
    assert [len(LAYOUT.parse(piece.ids)) for piece in pieces] == [1, 1] and int(pieces[1].ids[0]) == BOS


def test_long_documents_are_left_out_and_counted(tmp_path):
    album = make_album()
    shards = TokenShards(write(tmp_path / "shards", album, per_shard=3), row_length=35, long_documents="drop")
    short = [item.document for item in album if len(item.document) <= 35]
    assert 0 < len(shards) == len(short) < len(album)
    assert all(same(shards.document(i, 0), document) for i, document in enumerate(short))
    assert shards.max_length == max(map(len, short))
    assert shards.describe_long_documents() == (
        f"{len(album) - len(short)} of 8 documents are longer than a row of 35 tokens and are left out"
    )
    again = pickle.loads(pickle.dumps(shards))
    assert len(again) == len(shards) and same(again.document(0, 0), shards.document(0, 0))


def test_long_documents_are_refused_with_their_number_and_both_remedies(tmp_path):
    folder = str(write(tmp_path / "shards", make_album()))
    data = ShardData({"mine": folder}, {"mine": 2}, 35, validation={"held": folder})
    found = data.source_problems()
    assert len(found) == 2 and all("of 8 documents of more than 35 tokens" in problem for problem in found)
    assert all(word in found[0] for word in ("'mine'", "has 43", "row_length to 43", "drop", "cut"))
    for way in ("drop", "cut"):
        assert ShardData({"mine": folder}, {"mine": 2}, 35, long_documents=way).source_problems() == []


def test_what_becomes_of_long_documents_is_said_once(tmp_path, caplog):
    folder = str(write(tmp_path / "shards", make_album()))
    data = ShardData({"mine": folder}, {"mine": 2}, 35, long_documents="drop")
    with caplog.at_level(logging.WARNING, logger="emu"):
        data.source_problems()
        data.source_problems()
        loader = iter(data.train_dataloader())
        for _ in range(3):
            assert next(loader).input_ids.shape[1] == 35
    assert [record.message for record in caplog.records] == [
        f"source 'mine': {data.training_sources()['mine'].describe_long_documents()}"
    ]


def test_documents_whose_segments_are_not_known_cannot_be_cut(tmp_path):
    folder = write(tmp_path / "shards", make_documents(9))
    with pytest.raises(ValueError, match=r"does not say where their segments lie.*emu shards merge"):
        TokenShards(folder, row_length=8, long_documents="cut")
    assert len(TokenShards(folder, row_length=8, long_documents="drop")) == 4
    with pytest.raises(ValueError, match="'keep'; expected one of refuse, drop, cut"):
        TokenShards(folder, row_length=8, long_documents="keep")
