"""`emu fit-text`: from the captions of any source to a text tokenizer."""

import json
import random

import pytest

from emu.cli.main import main
from emu.data.tokenizing.text_sample import TextSample, texts_of
from emu_tokenizers import TextTokenizer
from tests.tokenizing_toys import CAPTIONS, png


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"{CAPTIONS[number % 3]} on the left of {CAPTIONS[number % 2]}")
    return folder


def fit(source, output, *more):
    return main(["fit-text", str(source), "--output", str(output), *map(str, more)])


def test_the_captions_of_a_folder_become_a_tokenizer_that_is_the_same_again(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "text", "--vocab-size", 290) == 0
    assert "290 ids from 12 texts" in capsys.readouterr().out
    tokenizer = TextTokenizer.from_pretrained(tmp_path / "text")
    assert tokenizer.size == 290 and tokenizer.decode(tokenizer.encode("a red ball")) == "a red ball"
    assert fit(photos, tmp_path / "again", "--vocab-size", 290) == 0
    assert TextTokenizer.from_pretrained(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_wrong_requests_are_refused_and_write_nothing(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "text", "--vocab-size", 100_000) == 2
    assert "vocab_size is 100000, more than this corpus fills" in capsys.readouterr().err
    for file in photos.glob("*.txt"):
        file.unlink()
    assert fit(photos, tmp_path / "text", "--vocab-size", 290) == 2
    assert "no texts and no captions" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()
    (tmp_path / "text").mkdir()
    assert fit(photos, tmp_path / "text", "--vocab-size", 290) == 2


def test_bad_lines_are_counted(tmp_path, capsys):
    lines = [json.dumps({"items": [text]}) for text in CAPTIONS * 4]
    (tmp_path / "d.jsonl").write_text("\n".join([*lines, "{"]))
    assert fit(tmp_path / "d.jsonl", tmp_path / "text", "--vocab-size", 280) == 1
    assert "d.jsonl line 13: not JSON" in capsys.readouterr().err


def test_a_sample_is_bounded_and_does_not_depend_on_the_order():
    texts = {f"record {number}": f"text {number} " * (1 + number % 7) for number in range(500)}
    chosen = []
    for seed in range(4):
        names = list(texts)
        random.Random(seed).shuffle(names)
        sample = TextSample(2000)
        for name in names:
            sample.add(name, texts[name])
        chosen.append(sample.texts())
        assert sum(map(len, chosen[-1])) <= 2000 and sample.num_seen == 500
    assert chosen[0] == chosen[1] == chosen[2] == chosen[3] and len(chosen[0]) > 10
    other = TextSample(2000, seed=1)
    for name, text in texts.items():
        other.add(name, text)
    assert other.texts() != chosen[0]


def test_texts_of_documents_and_conversations():
    assert list(texts_of({"items": ["a", {"text": "b"}, {"caption": "c"}, {"image": "d.png"}, 5]})) == ["a", "b", "c"]
    messages = [{"role": "user", "content": [{"image": "x"}, "a"]}, {"role": "assistant", "content": "b"}, 7]
    assert list(texts_of({"messages": messages})) == ["a", "b"]
    assert list(texts_of({"items": 5})) == []
