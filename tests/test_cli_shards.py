"""`emu shards`: look at folders, check them, merge them."""

import json
from pathlib import Path

import pytest

import emu.cli.shards as command
from emu.cli.main import main
from emu.data.shards import TokenShards, merge
from emu_tokenizers.files import write_json
from tests.shards_toys import LAYOUT, VOCABULARY, laid_out, make_album, make_documents, picture, same, text, write

DATA = Path(__file__).parent / "data"


def test_show_counts_documents_tokens_segments_and_weights(tmp_path, capsys):
    album = make_album()
    folder = write(
        tmp_path / "shards", [*album, laid_out(text("hello"), text("yes"), roles=("user", "assistant"))], per_shard=4
    )
    assert main(["shards", "show", str(folder), str(DATA / "shards-version-1")]) == 0
    told = capsys.readouterr().out
    tokens = sum(len(item.document) for item in album) + 10
    assert f"9 documents, {tokens} tokens in 3 shards (format version 2)" in told
    assert "4 of image 2*3, 60 tokens" in told and "1 of text (user), 5 tokens" in told
    assert (
        "1 of video 2*2*2 fps 8 frames 8" in told and "4 documents have one that caption_dropout may leave out" in told
    )
    assert "0.1 for 12 tokens" in told and f"vocabulary {VOCABULARY.fingerprint}" in told
    assert "(format version 1)" in told and "not all are known; emu shards merge --tokenizer finds them" in told


def test_verify_names_what_is_damaged_and_fails(tmp_path, capsys):
    folder = write(tmp_path / "shards", make_album(), per_shard=3)
    assert main(["shards", "verify", str(folder)]) == 0
    assert "8 documents, every byte is what was written" in capsys.readouterr().out
    path = folder / "shard-00001.ids.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert main(["shards", "verify", str(folder), str(DATA / "shards-version-1")]) == 1
    told = capsys.readouterr()
    assert "shard-00001.ids.npy is damaged" in told.err and "version-1: 8 documents, every byte" in told.out
    (folder / "manifest.json").write_bytes(b"\0")
    assert main(["shards", "verify", str(folder)]) == 1
    assert "manifest.json is damaged" in capsys.readouterr().err
    assert main(["shards", "verify", str(tmp_path / "nowhere")]) == 2


def test_verify_takes_a_file_that_is_gone_for_damage_and_goes_on(tmp_path, capsys):
    folder = write(tmp_path / "shards", make_album(), per_shard=3)
    (folder / "shard-00001.ids.npy").unlink()
    assert main(["shards", "verify", str(folder), str(DATA / "shards-version-2")]) == 1
    told = capsys.readouterr()
    assert "shard-00001.ids.npy is missing" in told.err and "version-2: 8 documents, every byte" in told.out


def test_a_merge_overwrites_no_shards_but_those_of_a_merge_that_was_stopped(tmp_path, capsys):
    write(tmp_path / "out", make_album(), per_shard=8)
    (tmp_path / "out" / "manifest.json").unlink()
    merge = ["shards", "merge", str(DATA / "shards-version-2"), "--output", str(tmp_path / "out")]
    table = json.loads((tmp_path / "out" / "shard-00000.json").read_text())
    write_json(tmp_path / "out" / "shard-00000.json", {**table, "about": {"input": "of a tokenisation"}})
    assert main(merge) == 2 and "emu tokenize that is not finished" in capsys.readouterr().err
    write_json(tmp_path / "out" / "shard-00000.json", {**table, "about": {}})
    assert main(merge) == 0 and len(TokenShards(tmp_path / "out")) == 8
    assert main(merge) == 2 and "holds token shards already" in capsys.readouterr().err


def test_folders_of_any_version_are_merged_into_the_present_one(tmp_path, capsys):
    more = write(tmp_path / "more", [laid_out(picture(2, 2), text("hm"), roles=("user", "assistant"), source="mine")])
    words = ["shards", "merge", str(DATA / "shards-version-1"), str(DATA / "shards-version-2"), str(more)]
    assert main([*words, "--output", str(tmp_path / "all"), "--shard-size", "5"]) == 0
    assert "17 documents" in capsys.readouterr().out
    ours, album = TokenShards(tmp_path / "all", 0.5), make_album()
    old, new = (TokenShards(DATA / f"shards-version-{version}", 0.5) for version in (1, 2))
    assert ours.manifest.version == 2 and len(ours.manifest.shards) == 4 and ours.fingerprints == old.fingerprints
    for i in range(len(album)):
        for key in range(3):
            assert same(ours.document(i, key), old.document(i, key))
            assert same(ours.document(8 + i, key), new.document(i, key))
    last = ours.shard(3)
    assert [(last.kinds[k].role, last.kinds[k].source) for k in last.spans[-2:, 2]] == [
        ("user", "mine"),
        ("assistant", "mine"),
    ]
    ours.verify()
    assert main([*words, "--output", str(tmp_path / "all")]) == 2
    assert "holds token shards already" in capsys.readouterr().err


def test_merging_finds_the_segments_of_an_old_folder(tmp_path):
    merge([DATA / "shards-version-1"], tmp_path / "new", shard_size=3, layout=LAYOUT)
    ours, known = (
        TokenShards(tmp_path / "new", row_length=35, long_documents="cut"),
        TokenShards(DATA / "shards-version-2"),
    )
    assert all(shard.has_segments for shard in ours.open_shards())
    assert ours.shard(1).spans.tolist() == known.shard(1).spans.tolist()
    with pytest.raises(ValueError, match="document 0 of shard 0"):
        merge([write(tmp_path / "noise", make_documents(3))], tmp_path / "none", layout=LAYOUT)


def test_folders_that_do_not_belong_together_are_not_merged(tmp_path, capsys):
    one, two = write(tmp_path / "one", make_album()), write(tmp_path / "two", make_album(), fingerprint="b")
    assert main(["shards", "merge", str(one), str(two), "--output", str(tmp_path / "all")]) == 2
    assert "made by different tokenizers: {'text': ('a', 'b')}" in capsys.readouterr().err
    assert main(["shards", "merge", str(one), "--output", str(tmp_path / "all"), "--shard-size", "0"]) == 2
    assert not (tmp_path / "all" / "manifest.json").exists()


def test_the_tokenizer_of_a_merge_may_be_a_folder(tmp_path, tiny_emu, monkeypatch):
    tiny_emu.tokenizer.save_pretrained(tmp_path / "tokenizer")
    seen = []
    monkeypatch.setattr(command, "merge", lambda folders, output, **options: seen.append(options["layout"]) or 0)
    words = ["shards", "merge", "a", "--output", "b", "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(words) == 0 and seen[0].name == "emu3"
