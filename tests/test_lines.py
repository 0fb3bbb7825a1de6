"""Files of lines: what ends a line, what is refused as a whole, and what is the trouble of one line."""

import io
import json
import os
import sys
import threading

import pytest

from emu import lines as module
from emu.lines import BadLine, NotLines, count_lines, is_readable, read_lines


def read(path):
    return [(line.number, line.table()) for line in read_lines(path)]


@pytest.fixture
def file(tmp_path):
    def write(content: bytes, name="some.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_any_of_the_three_ways_and_blank_ones_count(file, end):
    path = file(end.join([b'{"a": 1}', b"", b"  ", b'{"a": 2}']))
    assert read(path) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_characters_that_end_lines_elsewhere_end_none_here(file, character):
    content = json.dumps({"a": f"x{character}y"}, ensure_ascii=False).encode() + b'\n{"a": "z"}\n'
    found = list(read_lines(file(content)))
    assert [line.number for line in found] == [1, 2]
    if character not in "\x0b\x0c":  # JSON wants these two as escapes
        assert found[0].table() == {"a": f"x{character}y"}


def test_byte_order_marks_are_skipped_also_where_files_were_joined(file):
    assert read(file(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}')) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named_with_the_way_out(file, encoding):
    path = file('{"prompt": "a cat"}\n'.encode(encoding))
    with pytest.raises(
        NotLines, match=rf"some\.jsonl is {encoding[:6].upper()}; .*iconv -f {encoding[:6].upper()} -t UTF-8"
    ):
        next(read_lines(path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PAR1\x15\x04\x15", "Parquet"),
        (b"ARROW1\0\0", "Arrow"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (bytes(range(256)) * 16, "not text"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(range(32)) * 9, "not text"),
        (b'[\n {"prompt": "a cat"}\n]\n', "one JSON document"),
        (b'{\n "prompt": "a cat"\n}\n', "one JSON document"),
    ],
)
def test_what_does_not_hold_lines_gets_one_message(file, content, kind):
    with pytest.raises(NotLines, match=rf"some\.jsonl is .*{kind}"):
        next(read_lines(file(content)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": -1e999}', "not JSON"),
        (b'{"a": "caf\xe9"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "not text"),
        (b'{"a": 1, "a": 2}', "key twice"),
        (b'"words"', "not an object"),
        (b"null", "not an object"),
        (b"[1]", "not an object"),
        (b'{"a": "\x00"}', "not JSON"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_and_leaves_the_others(file, content, reason):
    before, bad, after = read_lines(file(b'{"a": "the first"}\n' + content + b'\n{"a": "the last"}\n'))
    with pytest.raises(BadLine) as found:
        bad.table()
    assert found.value.reason == reason and len(str(found.value)) < 300
    assert before.table() == {"a": "the first"} and after.table() == {"a": "the last"}


def test_a_line_that_is_too_long_is_left_out_without_being_held(file, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE", 100)
    path = file(b'{"a": 1}\n{"a": "' + b"x" * (3 << 20) + b'"}\n{"a": 3}\n')
    one, two, three = read_lines(path)
    with pytest.raises(BadLine, match="longer than 100 bytes"):
        two.table()
    assert len(two.content) <= 101 and (one.table(), three.number, three.table()) == ({"a": 1}, 3, {"a": 3})


def test_a_line_of_the_greatest_length_is_read_with_any_end(file, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE", 10)
    for end in (b"", b"\n", b"\n\n"):
        (line,) = read_lines(file(b'{"a":1234}' + end))
        assert line.table() == {"a": 1234}


def test_lines_come_from_pipes_and_from_standard_input(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}',))
    writer.start()
    assert is_readable(pipe) and count_lines(pipe) is None
    assert read(pipe) == [(1, {"a": 1}), (2, {"a": 2})]
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b'{"a": 3}\n'))))
    (line,) = read_lines("-")
    assert (line.file, line.table()) == ("standard input", {"a": 3})


def test_lines_are_read_one_after_another(file):
    path = file(b'{"a": 1}\n' * 200_000)
    first = next(read_lines(path))
    assert first.table() == {"a": 1} and count_lines(path) == 200_000


@pytest.mark.parametrize("name", ["nowhere.jsonl", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_named(tmp_path, name):
    assert not is_readable(name)
    with pytest.raises(FileNotFoundError, match="does not exist; expected a file"):
        next(read_lines(name))
    with pytest.raises(FileNotFoundError, match="is a folder"):
        next(read_lines(tmp_path))


def test_a_standard_input_that_is_closed_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FileNotFoundError, match="standard input is closed; expected a file"):
        list(read_lines("-"))
