"""What `emu tokenize` makes of lines that are wrong, of weights, of clips and of conversations."""

import json
import os
import struct
import threading
import time

import pytest
import torch
from PIL import Image

from emu import MultimodalTokenizer
from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.data.tokenizing.document_reader import DocumentReader
from emu.data.tokenizing.picture_sizes import Sizing
from emu.documents import CodeSegment, Text, Video
from emu.families.emu3.templates import EMU3
from emu.lines import BadLine, Line
from emu_tokenizers.files import holding


@pytest.fixture
def place(shelf, tmp_path):
    """A copy of the pictures, and a link to the tokenizers."""
    for file in shelf.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer").symlink_to(shelf / "tokenizer")
    return tmp_path


@pytest.fixture
def reader(tiny_emu, shelf):
    return DocumentReader(tiny_emu.tokenizer, shelf)


def document(reader, *items):
    return read(reader, {"items": list(items)}).document


def read(reader, table):
    content = table if isinstance(table, bytes) else json.dumps(table).encode()
    return reader.read(Line("some.jsonl", 1, content).table())


def tokenize(place, *lines, words=()):
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    (place / "documents.jsonl").write_bytes(content)
    base = ["tokenize", place / "documents.jsonl", "--tokenizer", place / "tokenizer", "--output", place / "out"]
    return main([*map(str, base), *map(str, words)])


NASTY = {
    "a name that is too long": ({"items": [{"image": "x" * 5000}]}, "missing file"),
    "a name with a zero byte": ({"items": [{"image": "a\0.png"}]}, None),
    "a number instead of a name": ({"items": [{"image": 5}]}, "wrong value"),
    "a folder instead of a picture": ({"items": [{"image": "."}]}, "missing file"),
    "a weight of 400 digits": (b'{"items": [{"text": "a", "weight": ' + b"9" * 400 + b"}]}", "wrong value"),
    "a number of 5,000 digits": (b'{"items": [{"text": "a", "weight": ' + b"9" * 5000 + b"}]}", "not JSON"),
    "nested JSON": (b'{"items": ' + b"[" * 50_000, "not JSON"),
    "nested items": (b'{"items": [' + b'{"image": ' * 500 + b"1" + b"}" * 500 + b"]}", "wrong value"),
    "half a character": (b'{"items": ["\\udc00"]}', "not text"),
    "a byte that is not UTF-8": (b'{"items": ["\xe9"]}', "not UTF-8"),
    "no items": ({"items": []}, "no items"),
    "a word": (b'"words"', "not an object"),
    "unknown keys": ({"items": [{"image": "0.png", "wieght": 0}]}, "unknown key"),
    "no frames": ({"items": [{"frames": []}]}, "wrong value"),
    "frames that are numbers": ({"items": [{"frames": [1, 2]}]}, "wrong value"),
}


@pytest.mark.parametrize("name", NASTY)
def test_any_trouble_with_a_line_is_that_lines_problem(reader, name):
    table, reason = NASTY[name]
    with pytest.raises(BadLine) as found:
        read(reader, table)
    assert reason in (None, found.value.reason) and "unsupported operand" not in str(found.value)


@pytest.mark.parametrize(
    "error", [struct.error("x"), OverflowError("x"), MemoryError(), KeyError(105), OSError(5, "x")]
)
def test_whatever_a_decoder_raises_is_the_problem_of_its_line_and_names_the_file(place, monkeypatch, capsys, error):
    original = Image.open

    def open_or_fail(file, *arguments, **options):
        if str(file).endswith("1.png"):
            raise error
        return original(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", open_or_fail)
    assert tokenize(place, *({"items": [{"image": f"{i}.png"}]} for i in range(3))) == 1
    told = capsys.readouterr().err
    assert "documents.jsonl line 2: item 1" in told and "1.png" in told and "Traceback" not in told
    assert len(TokenShards(place / "out")) == 2


def test_problems_are_counted_by_reason_beside_the_shards(place, capsys):
    lines = [{"items": [{"image": f"missing-{i}.png"}]} for i in range(30)]
    assert tokenize(place, *lines, b"{", {"items": ["a"]}) == 1
    missing, syntax = map(json.loads, (place / "out" / "problems.jsonl").read_text().splitlines())
    assert (missing["reason"], missing["count"], len(missing["examples"])) == ("missing file", 30, 20)
    assert (syntax["reason"], syntax["count"], syntax["examples"][0]["line"]) == ("not JSON", 1, 31)
    assert syntax["examples"][0]["file"].endswith("documents.jsonl")
    told = capsys.readouterr().err
    assert told.count("there is no file") == 20 and "only counted" in told
    assert tokenize(place, {"items": ["a"]}) == 0
    assert not (place / "out" / "problems.jsonl").exists()


def test_too_large_a_share_of_bad_lines_stops_the_run(place, capsys):
    lines = [{"items": ["a" if i % 20 else ""]} for i in range(1000)]
    assert tokenize(place, *lines, words=["--shard-size", 50]) == 1
    told = capsys.readouterr()
    assert "stopped: 10 of 200 lines are bad, more than --max-bad 0.02" in told.err and "10 bad lines" in told.out
    assert not (place / "out" / "manifest.json").exists()
    assert tokenize(place, *lines, words=["--shard-size", 50, "--max-bad", 0.06]) == 1
    assert len(TokenShards(place / "out")) == 950
    assert tokenize(place, *lines, words=["--max-bad", 2]) == 2


@pytest.mark.parametrize("content", [b"PAR1" + bytes(3000), "{}".encode("utf-16"), bytes(range(256)) * 20])
def test_a_file_that_holds_no_lines_is_one_message_and_no_folder(place, capsys, content):
    assert tokenize(place, content) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (place / "out").exists()


def test_a_folder_without_documents_never_looks_finished(place):
    assert tokenize(place, {"items": ["a"]}) == 0
    assert tokenize(place, {"items": [""]}) == 1
    with pytest.raises(FileNotFoundError, match="not finished"):
        TokenShards(place / "out")


@pytest.mark.parametrize("item", ['"text": "a"', '"caption": "a"', '"image": "0.png"', '"frames": ["0.png", "1.png"]'])
def test_weights_that_are_no_weights_are_refused_at_the_line(reader, item):
    for weight in (-1, -1e-9, "NaN", "Infinity", "-Infinity", "1e400", '"1"', "true", "null", "2e6"):
        with pytest.raises(BadLine, match=r"weight is|not a number of JSON|too large a number"):
            read(reader, f'{{"items": [{{{item}, "weight": {weight}}}]}}'.encode())


def test_the_weight_of_a_picture_counts(reader, shelf, tiny_emu):
    tokenizer, image = tiny_emu.tokenizer, Image.open(shelf / "0.png")
    for weight in (0.0, 0.25, 1.0):
        weighed = document(reader, "a ball", {"image": "0.png", "weight": weight}, {"text": "a", "weight": 1})
        plain = tokenizer.document(["a ball", image, "a"])
        assert torch.equal(weighed.ids, plain.ids)
        (segment,) = tokenizer.segments(image)
        expected = tokenizer.document(["a ball", CodeSegment("image", segment.codes, weight=weight), Text("a")])
        assert torch.equal(weighed.weights, expected.weights)
        codes = plain.ids >= tokenizer.vocabulary.range("vision")[0]
        codes &= plain.ids < sum(tokenizer.vocabulary.range("vision"))
        assert codes.sum() == 4 and (weighed.weights[codes] == weight).all()


@pytest.mark.parametrize(
    "items",
    [
        [{"text": "a", "weight": 0}],
        [{"image": "0.png", "weight": 0}],
        [{"text": "a", "weight": 0}, {"image": "0.png", "weight": 0.0}],
        [{"text": "a", "weight": 1e-60}],
        [{"caption": "a"}, {"image": "0.png", "weight": 0}],
    ],
)
def test_documents_that_nothing_is_learned_from_are_refused(reader, items):
    with pytest.raises(BadLine, match="weight 0 everywhere"):
        document(reader, *items)


@pytest.mark.parametrize("item", ["", {"text": ""}, {"caption": ""}, {"text": 5}, {"text": None}])
def test_empty_texts_are_refused(reader, item):
    with pytest.raises(BadLine, match="expected text that is not empty"):
        document(reader, item, "more")


def test_a_shard_never_fails_for_its_number_of_weights(place, capsys):
    lines = [{"items": [{"text": "a", "weight": 1 + i / 1000}]} for i in range(300)]
    assert tokenize(place, *lines, words=["--max-bad", 1]) == 1
    assert "256 other loss weights" in capsys.readouterr().err
    assert len(TokenShards(place / "out")) == 255


def touched(path):
    """Write a file again; its content and size stay."""
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns + 10_000_000
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))


def counted(monkeypatch):
    """The lines that are tokenized from now on."""
    read, original = [], DocumentReader.draft

    def draft(self, table):
        read.append(len(read) + 1)
        return original(self, table)

    monkeypatch.setattr(DocumentReader, "draft", draft)
    return read


def test_files_that_were_repaired_or_came_are_seen_by_the_next_run(place, tiny_emu, monkeypatch):
    good = (place / "1.png").read_bytes()
    (place / "1.png").write_bytes(good[:40])
    lines = [{"items": [{"image": "0.png"}]}, {"items": [{"image": "1.png"}]}, {"items": [{"image": "later.png"}]}]
    assert tokenize(place, *lines) == 1
    assert len(TokenShards(place / "out")) == 1
    (place / "1.png").write_bytes(good)
    assert tokenize(place, *lines) == 1
    assert len(TokenShards(place / "out")) == 2
    Image.new("RGB", (8, 8)).save(place / "later.png")
    assert tokenize(place, *lines) == 0
    assert len(TokenShards(place / "out")) == 3
    assert torch.equal(
        TokenShards(place / "out").document(1, 0).ids, tiny_emu.tokenizer.encode(Image.open(place / "1.png"))
    )
    read = counted(monkeypatch)
    assert tokenize(place, *lines) == 0 and read == []
    touched(place / "0.png")
    assert tokenize(place, *lines) == 0 and read == [1, 2, 3]


def test_a_link_that_leads_to_itself_is_a_missing_file_of_its_line(place, capsys):
    (place / "loop.png").symlink_to("loop.png")
    assert tokenize(place, {"items": [{"image": "loop.png"}]}, {"items": [{"image": "0.png"}]}) == 1
    assert "line 1: item 1: there is no file" in capsys.readouterr().err
    assert len(TokenShards(place / "out")) == 1


def test_frames_of_a_folder_that_changed_are_read_again(place, monkeypatch):
    (place / "clip").mkdir()
    for number in (0, 1, 2, 3):
        Image.open(place / f"{number}.png").save(place / "clip" / f"{number}.png")
    line = {"items": [{"frames": "clip"}]}
    assert tokenize(place, line) == 0
    read = counted(monkeypatch)
    assert tokenize(place, line) == 0 and read == []
    touched(place / "clip" / "2.png")
    assert tokenize(place, line) == 0 and read == [1]


def test_animations_folders_and_lists_are_whole_clips(place, tiny_emu):
    frames = [Image.open(place / f"{i}.png").convert("RGB") for i in range(4)]
    (place / "clip").mkdir()
    for number, frame in zip((2, 10, 11, 100), frames, strict=True):
        frame.save(place / "clip" / f"frame_{number}.png")
    encode, reader = tiny_emu.tokenizer.encode, DocumentReader(tiny_emu.tokenizer, place)
    listed = {"frames": [f"{i}.png" for i in range(4)]}
    assert torch.equal(document(reader, {**listed, "fps": 4}).ids, encode(Video(frames, fps=4)))
    assert torch.equal(document(reader, listed).ids, encode(Video(frames, fps=8)))
    assert torch.equal(document(reader, {"frames": "clip", "fps": 4}).ids, encode(Video(frames, fps=4)))
    animation = Video.open(place / "anim.gif")
    assert (len(animation), animation.fps) == (4, 4)
    for named in ("anim.gif", ["anim.gif"]):
        assert torch.equal(document(reader, {"frames": named}).ids, encode(animation))
    assert torch.equal(document(reader, {"video": "anim.gif"}).ids, encode(animation))
    with pytest.raises(BadLine, match=r"anim\.gif is a clip of its own"):
        document(reader, {"frames": ["0.png", "anim.gif"]})


def test_a_part_of_a_video_is_read_at_a_rate_and_a_size(place, tiny_emu):
    pytest.importorskip("av")
    from emu.media import mp4_bytes

    shades = [Image.new("RGB", (32, 16), (8 * i, 8 * i, 8 * i)) for i in range(30)]
    (place / "clip.mp4").write_bytes(mp4_bytes(shades, 10))
    reader = DocumentReader(tiny_emu.tokenizer, place, Sizing(4, (8, 8)))
    item = {"video": "clip.mp4", "fps": 5, "start": 1, "frames": 8, "weight": 0.5}
    found = document(reader, item)
    part = Video.open(place / "clip.mp4", fps=5, start=1, frames=8, size=(8, 8))
    assert len(part) == 8 and part.frames.shape[1:3] == (8, 8)
    assert torch.equal(found.ids, tiny_emu.tokenizer.encode(part)) and set(found.weights.tolist()) == {0.0, 0.5}
    for wrong in (
        {"start": -1},
        {"start": "0"},
        {"frames": 0},
        {"frames": 2.5},
        {"fps": 0},
        {"fps": None},
        {"size": [8, 8]},
    ):
        with pytest.raises(BadLine):
            document(reader, {**item, **wrong})
    with pytest.raises(BadLine, match=r"clip\.mp4"):
        document(reader, {"video": "clip.mp4", "start": 1000})


def test_two_runs_never_write_into_one_folder(place, capsys):
    with holding(place / "out", "emu tokenize"):
        assert tokenize(place, {"items": ["a"]}) == 2
    assert "is in use by" in capsys.readouterr().err
    assert tokenize(place, {"items": ["a"]}) == 0


def test_an_interruption_keeps_what_is_finished(place, monkeypatch):
    lines = [{"items": ["a" * (i + 1)]} for i in range(6)]
    original, count = DocumentReader.draft, []

    def interrupted(self, entry):
        count.append(entry)
        if len(count) == 4:
            raise KeyboardInterrupt
        return original(self, entry)

    monkeypatch.setattr(DocumentReader, "draft", interrupted)
    assert tokenize(place, *lines, words=["--shard-size", 2]) == 130
    assert not (place / "out" / "manifest.json").exists()
    assert tokenize(place, *lines, words=["--shard-size", 2]) == 0
    assert len(count) == 4 + 4 and len(TokenShards(place / "out")) == 6


def test_shards_are_written_while_lines_still_come(place):
    pipe = place / "pipe"
    os.mkfifo(pipe)
    seen = []

    def feed():
        with pipe.open("wb", buffering=0) as file:
            file.write(b'{"items": ["a"]}\n{"items": ["b"]}\n')
            end = time.monotonic() + 20
            while not (place / "out" / "shard-00000.json").exists() and time.monotonic() < end:
                time.sleep(0.01)
            seen.append((place / "out" / "shard-00000.json").exists())
            file.write(b'{"items": ["c"]}\n')

    writer = threading.Thread(target=feed)
    writer.start()
    words = ["--tokenizer", str(place / "tokenizer"), "--output", str(place / "out"), "--shard-size", "2"]
    assert main(["tokenize", str(pipe), *words]) == 0
    writer.join()
    assert seen == [True] and len(TokenShards(place / "out")) == 3


def test_documents_come_from_a_pipe(place):
    documents, feed = os.pipe()
    os.write(feed, b'\xef\xbb\xbf{"items": ["a ball"]}\r\n{"items": ["a circle"]}\r\n')
    os.close(feed)
    words = ["--tokenizer", str(place / "tokenizer"), "--output", str(place / "out")]
    assert main(["tokenize", f"/dev/fd/{documents}", *words]) == 0
    assert len(TokenShards(place / "out")) == 2


def test_of_a_conversation_the_assistant_is_learned(reader, shelf, tiny_emu):
    turns = [
        ("user", [{"image": "0.png"}, "What is it?"]),
        ("assistant", "a ball"),
        ("user", "why"),
        ("assistant", "a"),
    ]
    found = read(reader, {"messages": [{"role": role, "content": content} for role, content in turns]}).document
    image = Image.open(shelf / "0.png")
    (codes,) = tiny_emu.tokenizer.segments(image)
    silent = [CodeSegment("image", codes.codes, weight=0.0), Text("What is it?", 0.0), Text("a ball"), Text("why", 0.0)]
    expected = tiny_emu.tokenizer.document([*silent, Text("a")])
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.weights, expected.weights)
    everything = DocumentReader(tiny_emu.tokenizer, shelf, loss_on="all")
    found = read(everything, {"messages": [{"role": role, "content": content} for role, content in turns]}).document
    assert torch.equal(found.weights, tiny_emu.tokenizer.document([image, "What is it?", "a ball", "why", "a"]).weights)


def test_conversations_stand_in_the_template_that_generation_asks_with(shelf, tiny_emu):
    tokenizer = tiny_emu.tokenizer
    chat = MultimodalTokenizer(tokenizer.text, tokenizer.vision, vocabulary=tokenizer.vocabulary, templates=EMU3)
    messages = [
        {"role": "user", "content": [{"image": "0.png"}, "What is it?"]},
        {"role": "assistant", "content": "a red circle"},
    ]
    found = read(DocumentReader(chat, shelf), {"messages": messages}).document
    question = chat.question([Image.open(shelf / "0.png"), "What is it?"])
    answer = tokenizer.layout.encode_text("a red circle")
    assert found.ids.tolist() == [*question.tolist(), *answer, tokenizer.vocabulary.control("eos")]
    assert found.weights.tolist() == [0.0] * len(question) + [1.0] * (len(answer) + 1)
    with pytest.raises(BadLine, match="one question and one answer"):
        read(DocumentReader(chat, shelf), {"messages": messages * 2})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "words",
        [{"role": "user", "content": "a"}],
        [{"role": "robot", "content": "a"}],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": [""]}],
        [{"role": "assistant"}],
        [5],
    ],
)
def test_conversations_of_another_form_are_refused(reader, messages):
    with pytest.raises(BadLine):
        read(reader, {"messages": messages})
