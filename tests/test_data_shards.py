import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from emu.data.shards import DamagedShards, TokenizedDocument, TokenShards, read_entry, write_shard
from emu.documents import Span, TokenDocument
from tests.shards_toys import (
    LAYOUT,
    VOCABULARY,
    clip,
    laid_out,
    make_album,
    make_documents,
    picture,
    same,
    text,
    write,
)

DATA = Path(__file__).parent / "data"


def test_documents_come_back_as_they_were(tmp_path):
    documents = make_documents(23)
    shards = TokenShards(write(tmp_path / "shards", documents))
    assert len(shards) == 23 and shards.max_length == max(len(item.document) for item in documents)
    for i in (22, 0, 7, 6, 13):
        document = shards.document(i, key=1)
        assert torch.equal(document.ids, documents[i].document.ids)
        assert torch.equal(document.weights, documents[i].document.weights)
        assert shards.length(i, key=1) == len(document)
    assert shards.vocabulary == VOCABULARY
    assert np.load(tmp_path / "shards" / "shard-00000.ids.npy").dtype == np.uint16
    shards.verify()
    with pytest.raises(IndexError):
        shards.document(23, 0)


def test_captions_are_left_out_in_the_share_asked_for_and_by_key_alone(tmp_path):
    documents = make_documents(10)
    shards = TokenShards(write(tmp_path / "shards", documents), caption_dropout=0.3)
    full = documents[1].document
    without = torch.cat([full.ids[:1], full.ids[3:]])
    dropped = 0
    for key in range(400):
        document = shards.document(1, key)
        assert shards.length(1, key) == len(document)
        assert torch.equal(document.ids, shards.document(1, key).ids)
        dropped += len(document) < len(full)
        assert torch.equal(document.ids, full.ids if len(document) == len(full) else without)
    assert 80 < dropped < 160
    assert all(len(shards.document(0, key)) == len(documents[0].document) for key in range(20))


def test_shards_travel_to_other_processes(tmp_path):
    shards = pickle.loads(pickle.dumps(TokenShards(write(tmp_path / "shards", make_documents(9)))))
    assert len(shards.document(8, 0)) == 13


def test_what_is_not_finished_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TokenShards(tmp_path / "nowhere")
    folder = tmp_path / "shards"
    write_shard(folder, 0, make_documents(3), VOCABULARY, {})
    assert read_entry(folder, 0)["documents"] == 3 and read_entry(folder, 1) is None
    with pytest.raises(FileNotFoundError, match="not finished"):
        TokenShards(folder)
    write(folder, make_documents(10))
    ids = folder / "shard-00001.ids.npy"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-6])
    with pytest.raises(ValueError, match=r"shard-00001\.ids\.npy is damaged"):
        TokenShards(folder)
    ids.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"shard-00001\.ids\.npy is damaged: bytes 0 to .* checksum"):
        TokenShards(folder).verify()
    with pytest.raises(DamagedShards, match=r"shard-00001\.ids\.npy is damaged"):
        TokenShards(folder).document(9, 0)
    assert len(TokenShards(folder).document(0, 0)) == 5
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenShards(folder)


def test_a_manifest_that_was_edited_is_refused(tmp_path):
    folder = write(tmp_path / "shards", make_documents(5))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"]["shards"][0]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedShards, match=r"manifest\.json is damaged: its 'content' does not have the checksum"):
        TokenShards(folder)


def test_the_place_of_every_segment_is_kept(tmp_path):
    document = laid_out(
        text("say it"),
        picture(2, 3),
        text("it is"),
        clip(1, 2, 2),
        caption=0,
        roles=("user", "user", "assistant", "assistant"),
    )
    spans = document.document.spans
    assert LAYOUT.spans(document.document.ids) == spans
    assert [span.modality for span in spans] == ["text", "image", "text", "video"]
    assert spans[1].grid == (2, 3) and spans[3].meta == {"frames": 4, "fps": 8}
    assert sum(span.length for span in spans) == len(document.document) - 2
    shard = TokenShards(write(tmp_path / "shards", [laid_out(text("words")), document])).shard(0)
    assert shard.has_segments and shard.captions.tolist() == [[0, 0], [spans[0].start, spans[0].length]]
    rows = shard.spans[shard.span_starts[1] : shard.span_starts[2]]
    assert rows[:, :2].tolist() == [[span.start, span.length] for span in spans]
    assert [shard.kinds[kind].role for kind in rows[:, 2]] == ["user", "user", "assistant", "assistant"]
    assert rows[:, 3].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("spans", "caption", "message"),
    [
        ((Span(1, 3), Span(3, 2)), (0, 0), "do not lie in order"),
        ((Span(1, 9),), (0, 0), "do not lie in order in 8 tokens"),
        ((Span(1, 3), Span(4, 3)), (2, 3), "caption of 3 tokens from token 2 on is not a run of whole segments"),
    ],
)
def test_spans_that_mean_nothing_are_never_written(spans, caption, message, tmp_path):
    document = TokenDocument(torch.arange(8), torch.ones(8), spans)
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, 0, [TokenizedDocument(document, caption)], VOCABULARY, {})
    with pytest.raises(ValueError, match="2 roles for 0 segments"):
        plain = TokenDocument(torch.arange(8), torch.ones(8))
        write_shard(tmp_path, 0, [TokenizedDocument(plain, roles=("user", "assistant"))], VOCABULARY, {})


@pytest.mark.parametrize("version", [1, 2])
def test_folders_of_every_format_version_are_read(version):
    shards = TokenShards(DATA / f"shards-version-{version}")
    album = make_album()
    assert len(shards) == len(album) and shards.manifest.version == version
    assert all(same(shards.document(i, 0), album[i].document) for i in range(len(album)))
    bare = TokenShards(DATA / f"shards-version-{version}", caption_dropout=1.0)
    assert same(bare.document(0, 3), LAYOUT.build([picture(2, 3)]))
    shards.verify()


def test_what_a_folder_holds_and_how_it_is_read_has_one_identity(tmp_path):
    album = make_album()
    ours = TokenShards(write(tmp_path / "ours", album), 0.5)
    assert ours.identity == TokenShards(write(tmp_path / "again", album), 0.5).identity
    assert ours.identity == pickle.loads(pickle.dumps(ours)).identity
    assert ours.identity == TokenShards(tmp_path / "ours", 0.5, row_length=99, long_documents="cut").identity
    others = [
        TokenShards(tmp_path / "ours", 0.4),
        TokenShards(tmp_path / "ours", 0.5, row_length=30, long_documents="cut"),
        TokenShards(tmp_path / "ours", 0.5, row_length=30, long_documents="drop"),
        TokenShards(tmp_path / "ours", 0.5, row_length=31, long_documents="drop"),
        TokenShards(write(tmp_path / "fewer", album[:-1]), 0.5),
        TokenShards(write(tmp_path / "turned", album[::-1]), 0.5),
    ]
    assert len({ours.identity, *(other.identity for other in others)}) == 1 + len(others)


def test_any_number_of_shards_is_open_at_once(tmp_path):
    resource = pytest.importorskip("resource")
    shards = TokenShards(write(tmp_path / "shards", make_documents(18), per_shard=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))  # fewer than the arrays of these shards
    try:
        assert all(len(shards.document(i, 0)) for i in range(18))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
