import json
import pickle

import numpy as np
import pytest
import torch

from emu.data.sharded import ShardData
from emu.data.shards import (
    DamagedShards,
    TokenizedDocument,
    TokenShards,
    read_entry,
    write_manifest,
    write_shard,
)
from emu.documents import TokenDocument
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(300, {"vision": 512})


def make_documents(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(0, VOCABULARY.size, (5 + i % 9,), generator=generator)
        weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (len(ids),), generator=generator)]
        made.append(TokenizedDocument(TokenDocument(ids, weights), (1, 2) if i % 2 else (0, 0)))
    return made


def write(folder, documents, per_shard=7, fingerprint="a"):
    starts = range(0, len(documents), per_shard)
    for number, start in enumerate(starts):
        write_shard(folder, number, documents[start : start + per_shard], VOCABULARY, {"start": start})
    write_manifest(folder, len(starts), VOCABULARY, {"vocabulary": VOCABULARY.fingerprint, "text": fingerprint})
    return folder


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


def test_shards_of_different_tokenizers_are_not_mixed(tmp_path):
    one = write(tmp_path / "one", make_documents(9))
    two = write(tmp_path / "two", make_documents(9), fingerprint="b")
    data = ShardData({"one": str(one), "two": str(two)}, {"one": 2, "two": 1}, 16, seed=3)
    assert data.vocabulary == VOCABULARY and len(data.source_problems()) == 1
    assert "'one' and 'two' were made by different tokenizers" in data.source_problems()[0]
    fine = ShardData({"one": str(one)}, {"one": 2}, 16, validation={"one": str(one)})
    assert fine.source_problems() == []
    batch = next(iter(fine.train_dataloader()))
    assert batch.input_ids.shape[1] == 16 and int(batch.segment_ids.max()) >= 1
