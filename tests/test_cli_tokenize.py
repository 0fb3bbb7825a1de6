import json

import numpy as np
import pytest
import torch
from PIL import Image

from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.data.tokenizing.document_reader import DocumentReader
from emu.documents import Text, Video


@pytest.fixture
def place(tiny_emu, tmp_path):
    """A folder with tokenizers, pictures and a file of documents; the third and the fifth line are bad."""
    tiny_emu.tokenizer.save_pretrained(tmp_path / "tokenizer")
    generator = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    lines = [
        {"items": [{"caption": "a red circle", "weight": 0.1}, {"image": "0.png"}]},
        {"items": [{"image": "1.png"}, {"text": "Describe it.", "weight": 0}, "a red circle"]},
        {"items": [{"image": "missing.png"}]},
        {"items": [{"frames": [f"{i}.png" for i in range(4)], "fps": 4}]},
        {"items": [{"picture": "1.png"}]},
        {"items": ["plain words"]},
    ]
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


def tokenize(place, *words):
    base = [
        "tokenize",
        str(place / "documents.jsonl"),
        "--tokenizer",
        str(place / "tokenizer"),
        "--output",
        str(place / "out"),
    ]
    return main([*base, *map(str, words)])


def test_documents_become_shards_and_bad_lines_are_reported(place, tiny_emu, capsys):
    assert tokenize(place, "--shard-size", 2) == 1
    told = capsys.readouterr()
    assert f"documents.jsonl line 3: item 1: there is no file {place / 'missing.png'}" in told.err
    assert "documents.jsonl line 5: item 1: an item is" in told.err
    assert "4 documents" in told.out and "2 bad lines" in told.out
    shards = TokenShards(place / "out")
    shards.verify()
    assert len(shards) == 4 and shards.fingerprints == tiny_emu.tokenizer.fingerprints
    images = [Image.open(place / f"{i}.png").convert("RGB") for i in range(4)]
    wanted = [
        [Text("a red circle", 0.1), images[0]],
        [images[1], Text("Describe it.", 0.0), "a red circle"],
        [Video(images, fps=4)],
        ["plain words"],
    ]
    for i, items in enumerate(wanted):
        document = tiny_emu.tokenizer.document(items)
        assert torch.equal(shards.document(i, 0).ids, document.ids)
        assert torch.allclose(shards.document(i, 0).weights, document.weights)
    bare = TokenShards(place / "out", caption_dropout=1.0)
    assert torch.equal(bare.document(0, 5).ids, tiny_emu.tokenizer.document([images[0]]).ids)
    assert torch.equal(bare.document(1, 5).ids, shards.document(1, 5).ids)


def test_finished_shards_are_not_made_again(place, monkeypatch):
    assert tokenize(place, "--shard-size", 2) == 1
    (place / "out" / "manifest.json").unlink()
    (place / "out" / "shard-00001.json").unlink()
    read = counted(monkeypatch)
    assert tokenize(place, "--shard-size", 2) == 1
    assert len(read) == 2 and len(TokenShards(place / "out")) == 4
    read.clear()
    assert tokenize(place, "--shard-size", 2, "--size", 4, 4) == 1
    assert len(read) == 6


def counted(monkeypatch):
    """The entries that are tokenized from now on."""
    read, original = [], DocumentReader.draft
    monkeypatch.setattr(DocumentReader, "draft", lambda self, entry: read.append(entry) or original(self, entry))
    return read


def test_wrong_requests_are_refused(place, capsys):
    assert main(["tokenize", str(place / "none.jsonl"), "--output", str(place / "out")]) == 2
    assert tokenize(place, "--shard-size", 0) == 2
    (place / "documents.jsonl").write_text("\n\n")
    assert tokenize(place) == 2
    assert "has no documents" in capsys.readouterr().err
