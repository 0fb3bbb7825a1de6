"""What people give by mistake, or on purpose: `emu tokenize` and `emu fit-text` say what is wrong with it and keep the rest."""

import io
import json
import os
import resource
import stat
import struct
import subprocess
import sys
import tarfile
import zlib

import pytest
from PIL import Image

from emu.cli.main import main
from emu.data.shards import TokenShards
from tests.tokenizing_toys import environment, files_of, png, scene, write_tar


def bomb(side=100_000):
    """A picture that says it is very large."""
    header = bytearray(png(0))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


def hidden_bomb():
    """A picture with a compressed text of 64 MiB."""
    data = b"zTXt" + b"k\0\0" + zlib.compress(bytes(1 << 26), 9)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return png(0)[:33] + chunk + png(0)[33:]


def animation():
    written = io.BytesIO()
    scene(0).save(written, "gif", save_all=True, append_images=[scene(1)])
    return written.getvalue()


def jpeg(number):
    written = io.BytesIO()
    scene(number, 32, 32).save(written, "jpeg")
    return written.getvalue()


def table(*rows):
    return b"".join(json.dumps(dict(zip(("file_name", "text"), row, strict=True))).encode() + b"\n" for row in rows)


GOOD = {"0.png": png(0), "0.txt": b"a ball", "1.png": png(1), "1.txt": b"a red circle"}
BARE = {"0.png": png(0), "1.png": png(1)}
FOLDERS = {
    "bomb": ({"a.png": bomb(), "a.txt": b"a"}, {"too large": 1}),
    "text bomb": ({"a.png": hidden_bomb(), "a.txt": b"a"}, {"damaged": 1}),
    "cut": ({"a.png": png(5, 32, 32)[:-40], "a.txt": b"a", "b.jpg": jpeg(5)[:-300], "b.txt": b"b"}, {"damaged": 2}),
    "no bytes": ({"a.png": b"", "a.txt": b"a"}, {"not a picture": 1}),
    "web page": ({"a.jpg": b"<html>gone</html>", "a.txt": b"a"}, {"not a picture": 1}),
    "wrong ending": ({"a.png": jpeg(5), "a.txt": b"a"}, {}),
    "picture as video": ({"a.gif": png(5), "a.txt": b"a"}, {}),
    "no caption": ({"a.png": png(5)}, {"no caption": 1}),
    "blank caption": ({"a.png": png(5), "a.txt": b" \r\n"}, {"no caption": 1}),
    "no picture": ({"a.txt": b"a"}, {"no picture": 1}),
    "two pictures, one caption": ({"a.png": png(5), "a.jpg": jpeg(6), "a.txt": b"a"}, {"duplicate name": 2}),
    "one name in two folders": ({"x/0.png": png(5), "x/0.txt": b"a", "y/0.png": png(6), "y/0.txt": b"a"}, {}),
    "latin 1": ({"a.png": png(5), "a.txt": "caf\xe9".encode("latin1")}, {"not UTF-8": 1}),
    "half a character": ({"a.png": png(5), "a.json": b'{"caption": "\\ud800"}'}, {"not text": 1}),
    "no JSON": ({"a.png": png(5), "a.json": b"{" * 9999}, {"not JSON": 1}),
    "novel": ({"a.png": png(5), "a.txt": b"a" * (2 << 20)}, {"too large": 1}),
    "odd names": ({"caf\udce9.png": png(5), "caf\udce9.txt": b"a", "new\nline.png": b"", "new\nline.txt": b"a"}, {"not a picture": 1}),
}  # fmt: skip
"""Files beside two good ones, and how many of what is wrong with them."""
REFUSED = {
    "nothing": ({}, "it is empty"),
    "no pictures": ({"a.txt": b"a", "b.doc": b"b"}, "no pictures and no clips"),
    "broken row": ({**BARE, "metadata.jsonl": table(("0.png", "a")) + b"{\n"}, "metadata.jsonl cannot be read: line 2: not JSON"),
    "comma": ({**BARE, "metadata.csv": b"file_name,text\n0.png,red, round\n"}, "line 2 has more cells than there are columns; put texts"),
    "latin 1": ({**BARE, "metadata.csv": "file_name,text\n0.png,caf\xe9\n".encode("latin1")}, "metadata.csv is not UTF-8; save it"),
    "no parquet": ({**BARE, "metadata.parquet": b"PAR1"}, "metadata.parquet cannot be read"),
    "no names": ({**BARE, "metadata.csv": b"a,b\n1,2\n"}, "a row has no file_name"),
    "two columns": ({**BARE, "metadata.csv": b"file_name,a,b\n0.png,1,2\n"}, "name the column of captions with --caption"),
}  # fmt: skip
"""Folders of which nothing can be used."""


def write(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def tokenize(shelf, tmp_path):
    def run(source, *more):
        words = ["tokenize", source, "--tokenizer", shelf / "tokenizer", "--output", tmp_path / "out", "--size", "8,8"]
        return main([*map(str, words), *more])

    return run


def counts(folder):
    lines = map(json.loads, (folder / "problems.jsonl").read_text().splitlines())
    return {line["reason"]: line["count"] for line in lines}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_wrong_with_some_files_is_counted_and_the_others_are_kept(tokenize, tmp_path, name):
    files, expected = FOLDERS[name]
    assert tokenize(write(tmp_path / "in", {**GOOD, **files})) == int(bool(expected))
    assert counts(tmp_path / "out") == expected if expected else not (tmp_path / "out" / "problems.jsonl").exists()
    media = sum(not name.endswith((".txt", ".json")) for name in files)
    left_out = sum(expected.values()) - expected.get("no picture", 0)
    assert len(TokenShards(tmp_path / "out")) == 2 + media - left_out


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_and_nothing_is_written(tokenize, tmp_path, capsys, name):
    files, told = REFUSED[name]
    source = write(tmp_path / "in", files)
    assert tokenize(source) == 2
    assert told in capsys.readouterr().err
    assert main(["fit-text", str(source), "--output", str(tmp_path / "text"), "--vocab-size", "300"]) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_links_pipes_and_folders_named_as_pictures_are_not_read(tokenize, tmp_path):
    folder = write(tmp_path / "in", GOOD)
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
    assert tokenize(folder) == 0 and len(TokenShards(tmp_path / "out")) == 2


def test_rows_of_one_file_are_documents_each(tokenize, tmp_path):
    rows = (
        ("0.png", "a ball"),
        ("1.png", "a red circle"),
        ("0.png", "a ball rolling"),
        ("2.png", "gone"),
        ("../0.png", "out"),
    )
    assert tokenize(write(tmp_path / "in", {**BARE, "metadata.jsonl": table(*rows)})) == 1
    assert len(TokenShards(tmp_path / "out")) == 3 and counts(tmp_path / "out") == {"missing file": 1, "outside": 1}


def test_a_tar_of_links_and_members_that_lead_out_keeps_the_good_ones(tokenize, tmp_path):
    write_tar(
        tmp_path / "in.tar",
        {**GOOD, "../2.png": png(2), "../2.txt": b"a", "/3.png": png(3), "3.png": bomb(), "3.txt": b"a"},
    )
    with tarfile.open(tmp_path / "in.tar", "a") as file:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert tokenize(tmp_path / "in.tar") == 1
    found = counts(tmp_path / "out")
    assert len(TokenShards(tmp_path / "out")) == 2 and found["outside"] == 2 and found["not a file"] == 1
    assert found["too large"] == 1 and not (tmp_path.parent / "2.png").exists()


def test_a_file_that_may_not_be_read_is_counted(tokenize, tmp_path, monkeypatch):
    folder = write(tmp_path / "in", {**GOOD, "a.png": png(5), "a.txt": b"a", "b.png": png(6), "b.txt": b"b"})
    for name in ("a.png", "b.txt"):
        (folder / name).chmod(0)
    if os.access(folder / "a.png", os.R_OK):  # we are root, whom nothing is denied
        opened, denied = io.open, {str(folder / "a.png"), str(folder / "b.txt")}

        def refuse(file, *arguments, **options):
            if str(file) in denied:
                raise PermissionError(13, "Permission denied", str(file))
            return opened(file, *arguments, **options)

        for module in ("builtins.open", "io.open"):
            monkeypatch.setattr(module, refuse)
    assert tokenize(folder) == 1
    assert len(TokenShards(tmp_path / "out")) == 2 and sum(counts(tmp_path / "out").values()) == 2


def test_an_output_that_is_a_file_is_left_as_it_is(tokenize, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert tokenize(write(tmp_path / "in", GOOD)) in (1, 2)
    assert (tmp_path / "out").read_text() == "mine" and stat.S_ISREG((tmp_path / "out").stat().st_mode)


def captioned(folder, count):
    """A folder of so many captioned pictures."""
    files = {
        f"{number}.{ending}": data
        for number in range(count)
        for ending, data in (("png", png(number)), ("txt", b"a ball"))
    }
    return write(folder, files)


def tokenize_words(source, shelf, *more):
    """The command in a process of its own, up to the folder that it writes."""
    words = [sys.executable, "-m", "emu", "tokenize", source, "--tokenizer", shelf / "tokenizer", "--size", "64,64"]
    return [*map(str, words), *more, "--output"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")
def test_a_disk_that_fills_up_is_a_line_and_the_same_command_goes_on(shelf, tmp_path):
    base = tokenize_words(captioned(tmp_path / "in", 40), shelf, "--shard-size", "10")

    def run(output, limit):
        def lower():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        words = [*base, str(tmp_path / output)]
        return subprocess.run(
            words, env=environment(), capture_output=True, text=True, preexec_fn=lower if limit else None
        )

    full = run("out", 2000)
    assert full.returncode == 1 and "shard-00000" in full.stderr and "Traceback" not in full.stderr
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out").glob("*.partial"))
    assert run("out", 0).returncode == run("new", 0).returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "new")


@pytest.mark.slow
def test_two_runs_into_one_folder_at_a_time_are_one_run(shelf, tmp_path):
    source = captioned(tmp_path / "in", 300)
    words = tokenize_words(source, shelf)
    runs = [
        subprocess.Popen([*words, str(tmp_path / "out")], env=environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert set(codes) <= {0, 2} and 0 in codes
    assert all("is in use by process" in text for code, text in zip(codes, told, strict=True) if code == 2)
    assert subprocess.run([*words, str(tmp_path / "new")], env=environment(), stderr=subprocess.DEVNULL).returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "new")
    assert Image.open(source / "0.png").size == (8, 8)
