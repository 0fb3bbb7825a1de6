"""Sources of raw documents: what each form becomes, and what is wrong with hostile ones."""

import io
import json
import tarfile
import unicodedata

import datasets
import pytest
from PIL import Image

from emu.data.tokenizing import SOURCES, SourceOptions, open_source
from emu.data.tokenizing.named_files import read_clip
from emu.lines import BadLine
from emu_tokenizers.pixels.tars import tar_members
from tests.tokenizing_toys import CAPTIONS, png, scene, write_tar


def tables(source):
    """What the records of a source say; problems as (reason, message)."""
    found = []
    for record in source.records():
        assert isinstance(source.state(record), bytes)
        try:
            found.append(source.read(record)["items"])
        except BadLine as error:
            found.append((error.reason, str(error)))
    return found


def reasons(source):
    return [found[0] for found in tables(source) if isinstance(found, tuple)]


@pytest.fixture
def photos(tmp_path):
    """Three pictures with a caption beside each, in two folders, one of JSON."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("2.png", "10.png", "more/1.png")):
        (folder / name).write_bytes(png(number))
    (folder / "2.txt").write_text(CAPTIONS[0] + "\n")
    (folder / "10.txt").write_bytes(b"\xef\xbb\xbf" + CAPTIONS[1].encode() + b"\r\n")
    (folder / "more" / "1.json").write_text(json.dumps({"caption": CAPTIONS[2], "width": 8}))
    return folder


def test_pictures_of_a_folder_come_in_natural_order_with_the_captions_beside_them(photos):
    source = open_source(str(photos))
    names = ["2.png", "10.png", "more/1.png"]
    assert tables(source) == [[{"caption": text}, {"image": name}] for text, name in zip(CAPTIONS, names, strict=True)]
    assert source.length == 3 and source.folder == photos
    reverse = open_source(str(photos), SourceOptions(order="image,caption"))
    assert tables(reverse)[0] == [{"image": "2.png"}, {"text": CAPTIONS[0]}]


def test_pictures_without_any_caption_are_documents_of_their_own(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "LICENSE.txt").write_text("free\n")
    assert tables(open_source(str(tmp_path))) == [[{"image": "0.png"}]]


def test_what_lacks_its_caption_or_its_picture_is_a_problem(photos):
    (photos / "3.png").write_bytes(png(3))
    (photos / "4.txt").write_text("words")
    (photos / "10.jpg").write_bytes(png(4))
    (photos / "5.png").write_bytes(png(5))
    (photos / "5.txt").write_text(" ")
    (photos / "6.png").write_bytes(png(6))
    (photos / "6.txt").write_bytes(b"\xff\xfe\xff")
    assert sorted(reasons(open_source(str(photos)))) == [
        *("duplicate name", "duplicate name", "no caption", "no caption", "no picture", "not UTF-8")
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_file_holds_captions_as_datasets_reads_them(tmp_path, kind):
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    rows += [{"file_name": "0.png", "text": "once more"}, {"file_name": "missing.png", "text": "b"}]
    rows += [{"file_name": "../0.png", "text": "c"}, {"file_name": "3.png", "text": ""}]
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    file = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        lines = [",".join(row.values()) for row in ({"a": "file_name", "b": "text"}, *rows)]
        file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(file)
    source = open_source(str(tmp_path))
    good = [table for table in tables(source) if isinstance(table, list)]
    assert [table[0]["caption"] for table in good] == [CAPTIONS[0], "once more", *CAPTIONS[1:]]
    assert sorted(reasons(source)) == ["missing file", "no caption", "no caption", "outside"]


@pytest.mark.parametrize(("ours", "theirs"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_letters_however_a_system_spells_them(tmp_path, ours, theirs):
    """A Mac's archive spells names in another way than a caption file that was typed."""
    names = ("caf\u00e9", "\u00fcber")
    (first, second), typed = ([unicodedata.normalize(form, name) for name in names] for form in (ours, theirs))
    for name in (first, second):
        (tmp_path / f"{name}.png").write_bytes(png(0))
    (tmp_path / f"{typed[0]}.txt").write_text("a ball")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{typed[1]}.png,a red circle\n")
    found = [table[0] for table in tables(open_source(str(tmp_path)))]
    assert sorted(item["caption"] for item in found) == ["a ball", "a red circle"]


def test_shards_that_lie_among_the_pictures_are_no_captions(photos):
    before = tables(open_source(str(photos)))
    for folder in (photos, photos / "more" / "shards"):
        folder.mkdir(exist_ok=True)
        for name in ("shard-00000.json", "shard-00001.json", "manifest.json", "problems.jsonl"):
            (folder / name).write_text("{}")
    assert tables(open_source(str(photos))) == before


def test_a_folder_without_pictures_is_a_wrong_request(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it is empty"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "empty" / "a.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        open_source(str(tmp_path / "empty"))


def test_members_of_one_name_are_a_sample(tmp_path):
    members = {}
    for number, text in enumerate(CAPTIONS):
        members |= {f"./a/{number:03d}.PNG": png(number), f"./a/{number:03d}.txt": text.encode()}
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"x.json": b'{"caption": "a ball", "id": 3}', "x.png": png(7), "y.png": png(8)})
    found = tables(open_source(f"webdataset:{tmp_path}/*.tar"))
    assert [table[0].get("caption") for table in found] == [*CAPTIONS, "a ball", None]
    assert [list(table[-1]) for table in found] == [["image"]] * 5
    assert Image.open(io.BytesIO(found[1][1]["image"])).tobytes() == scene(1).tobytes()


def test_hostile_members_are_problems_and_never_touch_the_disk(tmp_path):
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as file:
        for name, kind, link in (
            *(("../evil.png", tarfile.REGTYPE, ""), ("/etc/evil.png", tarfile.REGTYPE, "")),
            *(("link.png", tarfile.SYMTYPE, "/etc/passwd"), ("hard.png", tarfile.LNKTYPE, "good.png")),
            *(("fifo.png", tarfile.FIFOTYPE, ""), ("good.png", tarfile.REGTYPE, ""), ("good.png", tarfile.REGTYPE, "")),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            entry.size = len(png(0)) if kind == tarfile.REGTYPE else 0
            file.addfile(entry, io.BytesIO(png(0)))
        giant = tarfile.TarInfo("giant.png")
        giant.size = 1 << 40
        file.fileobj.write(giant.tobuf())
    assert reasons(open_source(str(path))) == [
        *("outside", "outside", "not a file", "not a file", "not a file", "duplicate name", "too large", "damaged")
    ]
    assert not (tmp_path.parent / "evil.png").exists()


def test_a_giant_header_of_a_tar_is_not_read(tmp_path):
    """Extended headers and long names of any length, claimed or there, and thousands of headers in a row."""
    write_tar(tmp_path / "good.tar", {"good.png": png(0)})
    good = (tmp_path / "good.tar").read_bytes()[:1024]  # one member and no end
    many = b"".join(_header(tarfile.XHDTYPE, 20, b"20 path=a/b/c/d.png\n") for _ in range(4000))
    wide = _header(tarfile.XHDTYPE, 1 << 20, b"x" * (1 << 20))
    hostile = [_header(kind, 1 << 33) for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)]
    for headers in (*hostile, wide, many):
        (tmp_path / "hostile.tar").write_bytes(good + headers + bytes(1 << 20))
        source = open_source(str(tmp_path / "hostile.tar"))
        first, giant = source.records()
        assert source.read(first)["items"][0]["image"] == png(0)
        with pytest.raises(BadLine, match="has a header of more than 262144 bytes after 1 members"):
            source.read(giant)


def _header(kind, size, content=b""):
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.USTAR_FORMAT if size < 1 << 33 else tarfile.GNU_FORMAT) + content.ljust(
        -(-len(content) // 512) * 512, b"\0"
    )


def test_a_truncated_tar_keeps_what_came_before(tmp_path):
    write_tar(tmp_path / "whole.tar", {f"{number}.png": png(number, 64, 64) for number in range(3)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:20_000])
    first, *others = tables(open_source(str(tmp_path / "cut.tar")))
    assert isinstance(first, list) and [reason for reason, _ in others] == ["damaged", "damaged"]
    (tmp_path / "words.tar").write_bytes(b"words" * 1000)
    with pytest.raises(ValueError, match=r"words\.tar is not an uncompressed tar file"):
        list(open_source(str(tmp_path / "words.tar")).records())
    with pytest.raises(FileNotFoundError, match="no tar files"):
        open_source("webdataset:nowhere/*.tar")


def test_what_follows_the_end_of_a_tar_is_a_problem(tmp_path):
    write_tar(tmp_path / "one.tar", {"1.png": png(1)})
    write_tar(tmp_path / "two.tar", {"2.png": png(2)})
    joined = (tmp_path / "one.tar").read_bytes() + bytes(10_240) + (tmp_path / "two.tar").read_bytes()
    (tmp_path / "joined.tar").write_bytes(joined)
    (tmp_path / "padded.tar").write_bytes((tmp_path / "one.tar").read_bytes() + bytes(10_240))
    assert [len(found) for found in tables(open_source(str(tmp_path / "padded.tar")))] == [1]
    first, (reason, message) = tables(open_source(str(tmp_path / "joined.tar")))
    assert len(first) == 1 and reason == "damaged" and "joined with cat" in message
    (tmp_path / "cut.tar").write_bytes(joined[: joined.index(b"\0" * 10_240)].ljust(1024, b"\0") + b"2.png")
    assert "ends within the header" in tables(open_source(str(tmp_path / "cut.tar")))[-1][1]


def test_a_tar_of_a_mac_holds_its_pictures_alone(tmp_path):
    """Its tar writes what the file system knows of ./1.png as ./._1.png before it."""
    members = {f"./{mark}{number}.png": png(number) for number in range(3) for mark in ("._", "")}
    write_tar(tmp_path / "mac.tar", members | {"./.DS_Store.txt": b"x"})
    found = tables(open_source(str(tmp_path / "mac.tar")))
    assert [table[0]["image"] for table in found] == [png(number) for number in range(3)]


def test_brackets_in_the_name_of_a_tar_are_no_pattern(tmp_path):
    write_tar(tmp_path / "photos[1].tar", {"1.png": png(1)})
    for name in ("", "webdataset:"):
        assert len(tables(open_source(f"{name}{tmp_path / 'photos[1].tar'}"))) == 1
    assert [member.member for member in tar_members(str(tmp_path / "photos[1].tar"))] == ["1.png"]


def test_a_caption_of_any_length_is_read_to_its_limit_alone(photos, tmp_path):
    with (photos / "2.txt").open("wb") as file:
        file.truncate(1 << 33)
    assert reasons(open_source(str(photos))) == ["too large"]
    write_tar(tmp_path / "a.tar", {"a.png": png(0), "a.txt": bytes(1 << 21)})
    assert reasons(open_source(str(tmp_path / "a.tar"))) == ["too large"]


def test_plain_text_is_a_document_a_line(tmp_path):
    (tmp_path / "notes.txt").write_text("a ball\n\na red circle\n")
    assert tables(open_source(str(tmp_path / "notes.txt"))) == [["a ball"], ["a red circle"]]
    (tmp_path / "notes.log").write_text("a ball\n")
    assert tables(open_source(f"text:{tmp_path / 'notes.log'}")) == [["a ball"]]


def test_a_csv_with_a_byte_order_mark_and_carriage_returns_is_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbfwords,file\r\na ball,0.png\r\n")
    for streaming in (False, True):
        source = open_source(str(tmp_path / "pairs.csv"), SourceOptions(streaming=streaming))
        assert tables(source) == [[{"caption": "a ball"}, {"image": "0.png"}]]
        assert source.length == (None if streaming else 1)


def test_cells_of_a_csv_are_text_whatever_they_look_like(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "0.png").write_bytes(png(0))
    words = ["7", "007", "NA", "null", "True", "1e3", "2024-01-01"]
    (tmp_path / "pairs.csv").write_text("id,words,file\n" + "".join(f"3,{word},0.png\n" for word in words))
    for streaming in (False, True):
        source = open_source(str(tmp_path / "pairs.csv"), SourceOptions("words", "file", streaming=streaming))
        assert [items[0]["caption"] for items in tables(source)] == words
    (tmp_path / "pairs.csv").write_text(
        "id,words,file\n3,7,0.png\n4,a ball,0.png\n,,\n"
    )  # numbers are no captions to guess
    first, second, (reason, _) = tables(open_source(str(tmp_path / "pairs.csv")))
    assert first[0] == {"caption": "7"} and second[0] == {"caption": "a ball"} and reason == "no picture"


def test_a_clip_file_becomes_clips_of_a_length(tmp_path):
    frames = [scene(number) for number in range(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250, loop=0)
    whole = tables(open_source(str(tmp_path / "a.gif")))
    assert whole == [[{"video": "a.gif"}]]
    parts = tables(open_source(str(tmp_path), SourceOptions(clip_frames=4, stride=0.5)))
    assert [item["start"] for (item,) in parts] == [0, 0.5, 1, 1.5] and parts[0][0]["frames"] == 4
    parts = tables(open_source(str(tmp_path), SourceOptions(clip_frames=4, fps=8)))
    assert [item["start"] for (item,) in parts] == [0, 0.5, 1, 1.5, 2] and parts[0][0]["fps"] == 8


def test_a_clip_whose_frames_stay_for_different_times_is_cut_to_its_end(tmp_path):
    frames = [scene(number) for number in range(10)]
    times = [250] * 9 + [1500]  # as writers join equal frames: 15 of a quarter of a second
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
    parts = tables(open_source(str(tmp_path), SourceOptions(clip_frames=5)))
    assert [item["start"] for (item,) in parts] == [0, 1.25, 2.5]
    assert read_clip(parts[-1][0], tmp_path).frames.shape == (5, 8, 8, 3)


def test_options_that_are_not_for_a_source_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("a\n")
    with pytest.raises(ValueError, match="--clip-frames does not go with it"):
        open_source(str(tmp_path / "notes.txt"), SourceOptions(clip_frames=3))
    for wrong in ({"order": "image"}, {"fps": 0}, {"clip_frames": 0}, {"stride": 1.0}):
        with pytest.raises(ValueError, match="--"):
            SourceOptions(**wrong)


class LetterSource:
    """A source of a user's own."""

    takes = frozenset()

    def __init__(self, name, options):
        self.name = name

    @classmethod
    def accepts(cls, name):
        return name.endswith(".letters")


def test_a_source_of_ones_own_is_found_by_its_name_and_by_what_it_accepts():
    SOURCES.register("letters", LetterSource)
    try:
        assert open_source("abc.letters").name == "abc.letters"
        assert open_source("letters:abc").name == "abc"
    finally:
        SOURCES.unregister("letters")
