"""Tables of captions and pictures through `emu tokenize`: datasets on the disk, folders of pictures, CSV, Parquet and Arrow files."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from emu.cli.main import main
from emu.data.shards import TokenShards

CAPTIONS = ["a red circle", "a ball", "a ball rolling left"]


@pytest.fixture(scope="module")
def tokenizer(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "tokenizer"
    tiny_emu.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of three pictures with captions, and no cache but one of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        image = Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        image.save(tmp_path / "pictures" / f"{number}.png")
    rows = "".join(f"{number}.png,{caption}\n" for number, caption in enumerate(CAPTIONS))
    (tmp_path / "pictures" / "metadata.csv").write_text(f"file_name,words\n{rows}")
    return tmp_path


def pictures(place):
    return [Image.open(place / "pictures" / f"{number}.png").convert("RGB") for number in range(3)]


def table(place, **more):
    columns = {"picture": pictures(place), "words": CAPTIONS, "number": [1, 2, 3], **more}
    return datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())


@pytest.fixture
def tokenize(place, tokenizer):
    def run(name, *words):
        return main(["tokenize", str(name), "--tokenizer", str(tokenizer), "--output", str(place / "out"), *words])

    return run


def ids(place, index, dropout=0.0):
    return TokenShards(place / "out", caption_dropout=dropout).document(index, 0).ids


def expected(tiny_emu, place, index, order=("caption", "image")):
    items = {"caption": CAPTIONS[index], "image": pictures(place)[index]}
    return tiny_emu.tokenizer.encode([items[part] for part in order])


def test_the_only_columns_of_their_kinds_are_guessed_and_said(place, tokenize, tiny_emu, capsys):
    table(place).save_to_disk(place / "saved")
    assert tokenize(f"dataset:{place / 'saved'}") == 0
    told = capsys.readouterr().out
    assert "caption is column 'words', image is column 'picture'" in told and "3 documents" in told
    for index in range(3):
        assert torch.equal(ids(place, index), expected(tiny_emu, place, index))
    assert torch.equal(ids(place, 1, dropout=1.0), tiny_emu.tokenizer.encode(pictures(place)[1]))


def test_a_folder_of_pictures_is_a_table(place, tokenize, tiny_emu):
    assert tokenize(f"dataset:{place / 'pictures'}", "--order", "image,caption") == 0
    for index in range(3):
        assert torch.equal(ids(place, index), expected(tiny_emu, place, index, ("image", "caption")))
    assert torch.equal(ids(place, 0, dropout=1.0), ids(place, 0))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "arrow"])
def test_files_of_tables_are_read_by_the_same_door(place, tokenize, tiny_emu, kind):
    file, rows = place / f"pairs.{kind}", table(place)
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [f"pictures/{number}.png{mark}{caption}\n" for number, caption in enumerate(CAPTIONS)]
        file.write_text(f"name{mark}words\n" + "".join(lines))
    elif kind == "parquet":
        rows.to_parquet(file)
    else:
        rows.save_to_disk(place / "saved")
        next((place / "saved").glob("*.arrow")).rename(file)
    assert tokenize(file) == 0
    for index in range(3):
        assert torch.equal(ids(place, index), expected(tiny_emu, place, index))


def test_what_cannot_be_guessed_must_be_named(place, tokenize, tiny_emu, capsys):
    table(place, other=["x", "y", "z"]).to_parquet(place / "pairs.parquet")
    assert tokenize(place / "pairs.parquet") == 2
    told = capsys.readouterr().err
    assert (
        "--caption and --image" in told
        and "words (text)" in told
        and "picture (picture)" in told
        and "number (other)" in told
    )
    assert tokenize(place / "pairs.parquet", "--caption", "text") == 2
    assert "--caption is 'text'" in capsys.readouterr().err and not (place / "out").exists()
    assert tokenize(place / "pairs.parquet", "--caption", "words") == 0
    assert torch.equal(ids(place, 2), tiny_emu.tokenizer.encode(CAPTIONS[2]))
    assert tokenize(place / "pairs.parquet", "--image", "picture") == 0
    assert torch.equal(ids(place, 2), tiny_emu.tokenizer.encode(pictures(place)[2]))


def test_splits_and_builder_arguments_stand_in_the_name(place, tokenize, tiny_emu, capsys):
    rows = table(place)
    datasets.DatasetDict(train=rows.select([0]), held=rows.select([1, 2])).save_to_disk(place / "saved")
    assert tokenize(f"dataset:{place / 'saved'},split=held") == 0
    assert torch.equal(ids(place, 0), expected(tiny_emu, place, 1)) and len(TokenShards(place / "out")) == 2
    assert tokenize(f"dataset:{place / 'saved'},split=nowhere") == 2
    assert "no split 'nowhere'; it has ['held', 'train']" in capsys.readouterr().err
    assert tokenize(f"dataset:imagefolder,data_dir={place / 'pictures'}") == 0
    assert torch.equal(ids(place, 2), expected(tiny_emu, place, 2))


def test_classes_are_captions_by_their_names(place, tokenize, tiny_emu):
    kind = datasets.ClassLabel(names=["a ball", "a red circle"])
    rows = table(place, kind=[1, 0, 0]).cast_column("kind", kind)
    rows.save_to_disk(place / "saved")
    assert tokenize(f"dataset:{place / 'saved'}", "--caption", "kind", "--image", "picture") == 0
    assert torch.equal(ids(place, 0), tiny_emu.tokenizer.encode(["a red circle", pictures(place)[0]]))


def test_a_bad_row_is_reported_and_left_out(place, tokenize, capsys):
    good = (place / "pictures" / "0.png").read_bytes()
    cells = [good, good[:60], None]
    datasets.Dataset.from_dict({"picture": cells, "words": CAPTIONS}).to_parquet(place / "pairs.parquet")
    assert tokenize(place / "pairs.parquet") == 1
    told = capsys.readouterr()
    assert "pairs.parquet row 1: item 2" in told.err and "pairs.parquet row 2: column 'picture' holds None" in told.err
    assert "1 documents" in told.out


def test_rows_that_did_not_change_are_not_read_again(place, tokenize, monkeypatch):
    from emu.data.tokenizing.document_reader import DocumentReader

    table(place).save_to_disk(place / "saved")
    read, original = [], DocumentReader.draft
    monkeypatch.setattr(DocumentReader, "draft", lambda self, entry: read.append(entry) or original(self, entry))
    for _ in range(2):
        assert tokenize(f"dataset:{place / 'saved'}", "--shard-size", "2") == 0
    assert len(read) == 3


@pytest.mark.parametrize(
    "name", ["nowhere.csv", "nowhere.parquet", "dataset:./nowhere", "dataset:imagefolder,nonsense"]
)
def test_what_is_not_there_is_one_line(place, tokenize, capsys, name):
    assert tokenize(name) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and name.removeprefix("dataset:").split(",")[0] in told


DAMAGED = {"bad.parquet": b"PAR1 and nothing", "bad.csv": b'a,b\n"1,2\n3,4,5,6\n', "bad.arrow": b"x"}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_one_line_that_names_it(place, tokenize, capsys, name):
    (place / name).write_bytes(DAMAGED[name])
    assert tokenize(place / name) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emu tokenize: ")]
    assert len(told) == 1 and name in told[0] and not (place / "out").exists()


def test_columns_of_lines_are_refused(place, tokenize, capsys):
    (place / "documents.jsonl").write_text('{"items": ["a"]}\n')
    assert tokenize(place / "documents.jsonl", "--caption", "words") == 2
    assert "columns of a table" in capsys.readouterr().err
