"""Folders, tar files, texts and conversations through `emu tokenize`, at every rule of size."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from emu import MultimodalTokenizer
from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.data.tokenizing.picture_sizes import Sizing, parse_sizing
from emu.documents import Video
from emu.modalities.boxes import Boxes
from emu_tokenizers.pixels.listing import files_under
from emu_tokenizers.pixels.resize import Resize
from tests.tokenizing_toys import CAPTIONS, png, scene, write_tar


@pytest.fixture
def tokenize(shelf, tmp_path):
    def run(source, *more):
        base = ["tokenize", source, "--tokenizer", shelf / "tokenizer", "--output", tmp_path / "out"]
        return main([*map(str, base), *map(str, more)])

    return run


def ids(tmp_path, index, dropout=0.0):
    return TokenShards(tmp_path / "out", caption_dropout=dropout).document(index, 0).ids


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, text in enumerate(CAPTIONS):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(text)
    return folder


def test_a_folder_and_a_tar_of_the_same_pictures_are_the_same_documents(tokenize, photos, tmp_path, tiny_emu):
    assert tokenize(photos) == 0
    expected = [tiny_emu.tokenizer.encode([text, scene(number)]) for number, text in enumerate(CAPTIONS)]
    assert all(torch.equal(ids(tmp_path, number), document) for number, document in enumerate(expected))
    assert torch.equal(ids(tmp_path, 1, dropout=1.0), tiny_emu.tokenizer.encode(scene(1)))
    write_tar(tmp_path / "photos.tar", {file.name: file.read_bytes() for file in sorted(photos.iterdir())})
    assert tokenize(tmp_path / "photos.tar") == 0
    assert all(torch.equal(ids(tmp_path, number), document) for number, document in enumerate(expected))


def test_damage_bombs_and_wrong_labels_are_counted_and_the_rest_is_kept(tokenize, photos, tmp_path, capsys):
    (photos / "0.png").write_bytes(png(0)[:60])
    scene(1).save(photos / "1.png", "jpeg")
    header = bytearray(png(2))
    header[16:24] = (100_000).to_bytes(4, "big") * 2
    (photos / "2.png").write_bytes(header)
    (photos / "3.png").write_text("words")
    (photos / "3.txt").write_text("words")
    assert tokenize(photos) == 1
    told = capsys.readouterr().err
    assert "0.png" in told and "2.png" in told and "3.png" in told and "1.png" not in told
    assert len(TokenShards(tmp_path / "out")) == 1
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()}
    assert {"not a picture"} < reasons


def test_streams_and_tars_show_their_rate_and_count_what_they_leave_out_by_reason(tokenize, photos, tmp_path, capsys):
    members = {file.name: file.read_bytes() for file in sorted(photos.iterdir())}
    write_tar(tmp_path / "photos.tar", {**members, "8.png": b"words", "9.txt": b"a ball"})
    rows = {"text": [*CAPTIONS, "a ball", ""], "image": [*(str(photos / f"{n}.png") for n in range(3)), "none.png", ""]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pairs.parquet")
    table = (tmp_path / "pairs.parquet", "--caption", "text", "--image", "image")
    for words, length in (((tmp_path / "photos.tar",), ""), ((*table, "--streaming"), ""), (table, "5/5")):
        assert tokenize(*words, "--max-bad", 1) == 1
        told = capsys.readouterr().err
        assert "document/s" in told and (f"{length} [" in told if length else "5document [" in told)
        page = (tmp_path / "out" / "report.html").read_text()
        assert "3 documents of 5 records" in page and page.count("20.00%") == 2


def test_clips_of_a_folder_are_cut_to_a_length(tokenize, tmp_path, tiny_emu):
    frames = [scene(number) for number in range(10)]
    (tmp_path / "clips").mkdir()
    file = tmp_path / "clips" / "a.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=250, loop=0)
    (tmp_path / "clips" / "a.txt").write_text("a ball")
    assert tokenize(tmp_path / "clips", "--clip-frames", 4, "--stride", 1) == 0
    assert len(TokenShards(tmp_path / "out")) == 2
    second = Video.open(file, start=1, frames=4)
    assert torch.equal(ids(tmp_path, 1), tiny_emu.tokenizer.encode(["a ball", second]))


def test_boxes_stand_in_lines_beside_words_and_pictures(tmp_path, tiny_emu):
    text, vision = tiny_emu.tokenizer.text, tiny_emu.tokenizer.vision
    tokenizer = MultimodalTokenizer(text, vision, modalities=("image", "boxes"))
    tokenizer.save_pretrained(tmp_path / "boxes")
    (tmp_path / "0.png").write_bytes(png(0))
    boxes = [[0, 0, 15, 31], [4, 4, 5, 5]]
    lines = [{"items": [{"image": "0.png"}, {"boxes": boxes, "weight": 0.5}]}, {"items": [{"boxes": [[1]]}]}]
    lines.append({"items": [{"frames": "0.png"}]})
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [tmp_path / "d.jsonl", "--tokenizer", tmp_path / "boxes", "--output", tmp_path / "out"]
    assert main(["tokenize", *map(str, words)]) == 1
    assert torch.equal(ids(tmp_path, 0), tokenizer.encode([scene(0), Boxes(boxes)]))
    assert len(TokenShards(tmp_path / "out")) == 1


def test_a_table_with_a_column_of_messages_holds_conversations(tokenize, tmp_path, tiny_emu, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    messages = [{"role": "user", "content": "a ball"}, {"role": "assistant", "content": "a red circle"}]
    datasets.Dataset.from_dict({"id": [1], "messages": [messages]}).to_parquet(tmp_path / "chat.parquet")
    for more in ((), ("--streaming",)):
        assert tokenize(tmp_path / "chat.parquet", *more) == 0
        assert torch.equal(ids(tmp_path, 0), tiny_emu.tokenizer.encode(["a ball", "a red circle"]))
    weights = TokenShards(tmp_path / "out").document(0, 0).weights
    assert 0 < (weights > 0).sum() < len(weights)


def test_messages_of_a_table_hold_pictures_beside_words_and_see_them_change(tmp_path, tokenize, tiny_emu, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    scene(0).save(tmp_path / "0.png")
    asked = {"role": "user", "content": [{"image": "0.png"}, {"text": "a ball"}]}
    said = {"role": "assistant", "content": [{"text": "a red circle"}]}
    datasets.Dataset.from_dict({"messages": [[asked, said]]}).to_parquet(tmp_path / "chat.parquet")
    for number in (0, 1):
        scene(number).save(tmp_path / "0.png")
        assert tokenize(tmp_path / "chat.parquet") == 0
        assert torch.equal(ids(tmp_path, 0), tiny_emu.tokenizer.encode([scene(number), "a ball", "a red circle"]))


def test_messages_that_are_no_text_are_bad_rows(tmp_path, tokenize, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [[{"role": "assistant", "content": b"bytes"}]]
    datasets.Dataset.from_dict({"messages": rows}).to_parquet(tmp_path / "chat.parquet")
    assert tokenize(tmp_path / "chat.parquet") == 1
    assert "message 1 has content b'bytes'; expected text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--size", "own"], (12, 8)),
        (["--size", "8,16"], (8, 16)),
        (["--size", "8", "16"], (8, 16)),
        (["--size=16,8"], (16, 8)),
        (["--size", "area=400:900"], (24, 20)),
        ([], (12, 8)),
    ],
)
def test_pictures_have_the_size_that_is_asked_for(tokenize, tmp_path, words, expected):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(0, 11, 9))
    assert tokenize(tmp_path / "photos", *words) == 0
    (kind,) = TokenShards(tmp_path / "out").shard(0).kinds
    assert tuple(4 * side for side in kind.grid) == expected


def test_sizes_that_cannot_be_are_refused(tokenize, photos, capsys):
    for words in ("5", "5,8", "0,8", "area=", "area=9:4", "ratio=2", "8,8,8", "big"):
        assert tokenize(photos, "--size", words) == 2
        assert "--size is" in capsys.readouterr().err


def test_rules_of_size():
    picture = Image.fromarray(np.zeros((37, 61, 3), np.uint8))
    assert parse_sizing("own", 8).picture(picture).size == (64, 40)
    assert Sizing(8).picture(picture.crop((0, 0, 2, 3))).size == (8, 8)
    assert parse_sizing(None, 8, Resize(8, area=4096)).picture(picture).size == Resize(8, area=4096)(picture).size
    clip = Video(np.zeros((2, 37, 61, 3), np.uint8), fps=4)
    assert parse_sizing(None, 8, Resize(8, area=4096)).clip(clip).frames.shape[1:3] == (40, 64)
    assert parse_sizing("area=4096", 8).clip(clip).frames.shape[1:3] != (40, 64)


def test_a_folder_that_may_not_be_listed_is_told(photos, monkeypatch, caplog):
    import os

    (photos / "secret").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files_under(photos, frozenset({".png"}), "pictures")
    assert "secret cannot be listed, and is left out: Permission denied" in caplog.text
