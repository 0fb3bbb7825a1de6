"""Mutated lines through every reader of lines: each is a counted problem or the right content, never a traceback, a hang or a leak."""

import json
import math
import random
import re
import resource

import pytest
import torch
from PIL import Image

from emu.cli.generate_videos import VIDEO_SETTINGS, given_frames
from emu.cli.line_problems import Problems
from emu.cli.main import main
from emu.cli.prompts import PromptReader
from emu.data.shards import TokenShards
from emu.data.tokenizing.document_reader import DocumentReader
from emu.documents import Text, Video
from emu.lines import Place, read_lines

COUNTS = [100, pytest.param(10_000, marks=pytest.mark.slow)]
DOCUMENTS = [
    {"items": ["a red circle", {"image": "0.png"}]},
    {"items": [{"caption": "a ball", "weight": 0.1}, {"image": "1.png", "weight": 0.5}]},
    {"items": [{"image": "2.png"}, {"text": "Describe it.", "weight": 0}, "a ball"]},
    {"items": [{"frames": ["0.png", "1.png", "2.png"], "fps": 4}]},
    {"items": [{"frames": "anim.gif"}, "a ball rolling left"]},
    {"items": [{"video": "anim.gif", "fps": 8, "start": 0.25, "frames": 3}]},
    {"messages": [{"role": "user", "content": [{"image": "0.png"}, "why"]}, {"role": "assistant", "content": "a"}]},
]
PROMPTS = [
    {"prompt": "a ball", "seed": 3},
    {"prompt": "a red circle", "size": [8, 16], "guidance_scale": 2.5, "negative_prompt": "a ball"},
    {"prompt": "", "temperature": 0, "top_k": 5, "top_p": 0.5, "id": "x", "label": 7},
]
CLIPS = [
    *PROMPTS,
    {"prompt": "a ball", "frames": 8, "fps": 4, "first_frames": "0.png"},
    {"prompt": "a ball", "frames": 12, "first_frames": ["0.png", "1.png"]},
    {"prompt": "a ball", "first_frames": {"video": "anim.gif", "start": 0.5, "frames": 2}},
]
NASTY = [
    None, True, -1, 0, 10**400, -(10**400), 1e308, -1e308, 5e-324, 2**63, 2**31, 1.5, [], {}, [[]], "", " ", ".", "..", "/", "a/b", "\0",
    "x" * 5000, "\u2028", "é", "../0.png", "/dev/null", "/dev/zero", "0.PNG",
    "anim.gif", "dataset:x", "-", [None], {"image": 5}, [1] * 1000,
]  # fmt: skip
WRITTEN = [
    b"", b"{", b"[" * 50_000, b'{"items":' * 20_000, b'{"items": [NaN]}', b"\xff\xfe{\x00", b"\x00" * 50, b"null", b'"\\ud800"',
    b'{"items": ["\\ud800"]}', b'{"prompt": "\\udfff"}', b'{"prompt": 1e999}', b'{"items": ["' + b"9" * 100_000 + b'"]}',
    b'{"seed": ' + b"9" * 5000 + b', "prompt": "a"}', b"\xef\xbb\xbf{}", b'{"prompt": "a", "prompt": "b"}', b"{}{}", b"'", b"\xe2\x80\xa8",
]  # fmt: skip


def fuzzed(valid, count, seed):
    """`count` lines: the valid ones, lines that are made to hurt, and mutations of the valid ones in their values and their bytes."""
    chance = random.Random(seed)
    lines = [json.dumps(line).encode() for line in valid] * 3 + WRITTEN
    while len(lines) < count:
        table = json.loads(json.dumps(chance.choice(valid)))
        for _ in range(chance.choice([0, 1, 1, 2])):
            replace_a_value(table, chance)
        line = json.dumps(table, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        lines.append(cut(line, chance) if chance.random() < 0.6 else line)
    return lines[:count]


def replace_a_value(table, chance):
    places, todo = [], [table]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if places:
        node, key = chance.choice(places)
        node[key] = json.loads(json.dumps(chance.choice(NASTY)))


def cut(line, chance):
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(line) + 1)
        end = min(len(line), start + chance.randint(0, 8))
        noise = bytes(chance.randrange(256) for _ in range(chance.randint(0, 6)))
        line = (
            line[:start]
            + chance.choice([b"", noise, line[start:end] * 2, bytes([chance.choice(b'{}[]",:0')])])
            + line[end:]
        )
    return line


def lines_of(content):
    """The lines of a file, found in another way."""
    return [line for line in re.split(rb"\r\n|\r|\n", content) if line.strip()]


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def expected_document(tokenizer, shelf, table):
    """What a line of documents says, read in the plainest way."""

    def value(item, weight):
        if isinstance(item, str):
            return Text(item, weight)
        if "text" in item or "caption" in item:
            return Text(item.get("text", item.get("caption")), item.get("weight", 1.0) if weight else 0.0)
        if "image" in item:
            found = Image.open(shelf / item["image"])
        elif "video" in item:
            more = {key: item[key] for key in ("fps", "start", "frames") if key in item}
            found = Video.open(shelf / item["video"], **more)
        else:
            names = item["frames"] if isinstance(item["frames"], list) else [item["frames"]]
            found = Video.open([shelf / name for name in names], fps=item.get("fps"))
        (segment,) = tokenizer.segments([found])
        return type(segment)(segment.modality, segment.codes, segment.meta, item.get("weight", 1.0) if weight else 0.0)

    if "items" in table:
        return tokenizer.document([value(item, 1.0) for item in table["items"]])
    spoken = []
    for message in table["messages"]:
        content = message["content"] if isinstance(message["content"], list) else [message["content"]]
        spoken += [value(item, float(message["role"] == "assistant")) for item in content]
    return tokenizer.document(spoken)


@pytest.mark.parametrize("count", COUNTS)
def test_lines_of_documents(shelf, tiny_emu, tmp_path, capsys, count):
    content = b"\n".join(fuzzed(DOCUMENTS, count, seed=1))
    (shelf / "documents.jsonl").write_bytes(content)
    before, reader = peak_memory(), DocumentReader(tiny_emu.tokenizer, shelf)
    problems, good, read = Problems(1.0), 0, 0
    for line in read_lines(shelf / "documents.jsonl"):
        read += 1
        found = None
        with problems.containing(Place(line.file, line.number)):
            found = reader.read(line.table())
        if found is not None:
            good += 1
            expected = expected_document(tiny_emu.tokenizer, shelf, json.loads(line.content.decode("utf-8-sig")))
            assert torch.equal(found.document.ids, expected.ids)
            assert torch.allclose(found.document.weights, expected.weights, rtol=1e-6, atol=0)
    assert read == len(lines_of(content)) == good + problems.num_bad and good > count / 10
    words = [shelf / "documents.jsonl", "--tokenizer", shelf / "tokenizer", "--output", tmp_path / "out"]
    assert main(["tokenize", *map(str, words), "--max-bad", "1"]) == 1
    assert f"{good} documents" in capsys.readouterr().out and len(TokenShards(tmp_path / "out")) == good
    assert peak_memory() - before < 1 << 30
    print(f"{count} lines, {good} documents, {problems.counts}, {(peak_memory() - before) >> 20} MiB more")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["images", "videos"])
def test_lines_of_prompts(shelf, tiny_emu, kind, count):
    content = b"\r\n".join(fuzzed(PROMPTS if kind == "images" else CLIPS, count, seed=2))
    file = shelf / f"{kind}.jsonl"
    file.write_bytes(content)
    before, problems = peak_memory(), Problems(1.0)
    names = VIDEO_SETTINGS if kind == "videos" else VIDEO_SETTINGS[:-2]
    extra = ("first_frames",) if kind == "videos" else ()
    reader = PromptReader(tiny_emu.defaults, names, (4, 4), seed=5, extra=extra)
    requests = reader.read([str(file)], problems)
    lines = {line.number: line for line in read_lines(file)}
    assert len(lines) == len(lines_of(content)) == len(requests) + problems.num_bad and len(requests) > count / 10
    for request in requests:
        table = json.loads(lines[request.place.number].content.decode("utf-8-sig"))
        items = table.pop("items", None)  # a document in place of a prompt
        assert (request.items is None) == (items is None) and (
            items is not None or request.prompt == table.pop("prompt")
        )
        assert request.seed == table.pop("seed", 5 + request.place.number - 1)
        settings = request.settings.to_dict()
        assert all(settings[name] == value for name, value in table.items() if name in names and value is not None)
        assert math.prod(settings["size"]) * settings["frames"] < 1 << 26 if kind == "videos" else settings["size"]
        assert json.loads(json.dumps(request.record())) and len(request.digest("model")) == 16
        if kind == "videos":
            with problems.containing(request.place):
                clip = given_frames(request, "first_frames")
                assert (clip is None) == ("first_frames" not in table)
                assert clip is None or clip.frames.shape[1:] == (*request.settings.size, 3)
    assert peak_memory() - before < 1 << 30 and not {"AssertionError", "OverflowError", "OSError"} & set(
        problems.counts
    )
    print(f"{count} lines, {len(requests)} requests, {problems.counts}, {(peak_memory() - before) >> 20} MiB more")
