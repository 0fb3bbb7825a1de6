"""`emu show-batch`: a packed row as text and as a picture."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from emu.cli.main import main
from emu.cli.row_parts import documents_of
from emu.cli.row_picture import BORDER, PALE, colour_of, draw_row
from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.documents import Text, Video
from emu.packing import pack
from tests.shards_toys import make_documents, write


def picture(shade):
    return Image.fromarray(np.full((8, 8, 3), shade, np.uint8))


def make_items():
    return [
        [Text("a red circle", 0.1), picture(250)],
        [picture(10), Text("a ", 0.0), "ball rolling left"],
        ["a ball", Video([picture(shade) for shade in range(0, 240, 30)], fps=4)],
    ]


@pytest.fixture
def place(tiny_emu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_emu.tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    documents = [TokenizedDocument(tokenizer.document(items)) for items in make_items()]
    write_shard(tmp_path / "shards", 0, documents, tokenizer.vocabulary, {})
    write_manifest(tmp_path / "shards", 1, tokenizer.vocabulary, tokenizer.fingerprints)
    return tmp_path


def show(*words):
    return main(["show-batch", *map(str, words)])


def test_a_row_of_shards_is_told_and_drawn(place, capsys):
    assert show("shards", "--tokenizer", "tokenizer", "--row-length", 128, "--row", 1, "--step", 3) == 0
    told = capsys.readouterr().out
    assert told.startswith("step 3, row 1 of 8: ") and "128 positions" in told and "drawn in batch.png" in told
    assert "document 1, shards: " in told and ("image 2*2, " in told or "video 2*2*2 frames 8 fps 4, " in told)
    with Image.open("batch.png") as drawn:
        assert drawn.width == 1000 and drawn.height > 150
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    assert {BORDER, PALE, colour_of(1.0)} <= colours


def test_every_part_says_what_it_is_and_how_much_it_weighs(tiny_emu):
    tokenizer = tiny_emu.tokenizer
    packed = pack([tokenizer.document(items) for items in make_items()], 256)
    found = documents_of(packed, 0, tokenizer.vocabulary, tokenizer, ["mine"])
    assert sum(document.length for document in found) == int((packed.segment_ids > 0).sum())
    by_kinds = {tuple(part.kind for part in document.parts): document.parts for document in found}
    caption, image = by_kinds["text", "image 2*2"]
    assert (caption.value, round(caption.weight, 3), image.weight) == ("a red circle", 0.1, 1.0)
    assert image.value.size == (8, 8)
    _, asked, answer = by_kinds["image 2*2", "text", "text"]
    assert (asked.value.strip(), asked.weight) == ("a", 0.0) and "ball rolling left" in answer.value
    _, clip = by_kinds["text", "video 2*2*2 frames 8 fps 4"]
    assert len(clip.value) == 8 and clip.value.fps == 4
    for document in found:
        for part in document.parts:
            weights = packed.loss_weights[0, part.start : part.start + part.length]
            assert document.start < part.start and float(weights.max()) == part.weight


def test_without_a_tokenizer_runs_of_ids_are_shown(place, capsys):
    assert show("shards", "--row-length", 64) == 0
    told = capsys.readouterr().out
    assert "not read: no tokenizer is named" in told and "vision codes, 2 tokens, weight 1" in told


def test_documents_that_a_tokenizer_cannot_read_are_shown_all_the_same(tiny_emu):
    tokenizer = tiny_emu.tokenizer
    ids = torch.tensor([tokenizer.vocabulary.control("image"), 3, 4])
    packed = pack([type(tokenizer.document("a"))(ids, torch.ones(3))], 8)
    (document,) = documents_of(packed, 0, tokenizer.vocabulary, tokenizer, ["mine"])
    assert "position 0 holds id" in document.unread
    assert [(part.kind, part.length) for part in document.parts] == [("controls", 1), ("text", 2)]
    assert draw_row("a row", packed.loss_weights[0], [document]).size[0] == 1000
    assert draw_row("an empty row", torch.zeros(8), []).size[0] == 1000


def write_recipe(place, **options):
    given = {"sources": {"mine": "shards"}, "row_length": "${mul:2,64}", "rows_per_step": 4, "tokenizer": "tokenizer"}
    data = {"class_path": "emu.data.sharded.ShardData", "init_args": {**given, **options}}
    (place / "mine.yaml").write_text(yaml.safe_dump({"model": {"of": "no account"}, "data": data}))


def test_a_row_of_a_recipe_needs_its_data_alone(place, capsys):
    write_recipe(place)
    assert show("mine.yaml", "--data.rows_per_step", 6, "--output", "other.png") == 0
    told = capsys.readouterr().out
    assert "row 0 of 6" in told and "128 positions" in told and "document 1, mine: " in told
    assert (place / "other.png").is_file() and not (place / "batch.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.yaml", "--row", 4], "--row is 4; step 0 has rows 0 to 3"),
        (["mine.yaml", "--step", -1], "--step is -1; steps count from 0"),
        (["mine.yaml", "--row-length", 64], "give --data.row_length"),
        (["mine.yaml", "--data.documents_per_step", "{mine: 2}"], "are both given"),
        (["mine.yaml", "--data.sources.mine", "nowhere"], "does not exist"),
        (["mine.yaml", "--data.class_path", "emu_tokenizers.training.ShapesData"], "cannot be built"),
        (["shards", "--data.seed", 1], "are options of a recipe"),
        (["shards", "--tokenizer", "digits"], "the tokenizer's vocabulary is"),
        (["nothing.yaml"], "nothing.yaml"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line(place, capsys, words, message):
    write_recipe(place)
    assert show(*words) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not (place / "batch.png").exists()


def test_shards_of_unknown_segments_have_rows_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "noise", make_documents(40))
    assert show("noise", "--row-length", 40) == 0
    assert "40 positions" in capsys.readouterr().out
