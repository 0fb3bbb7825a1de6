"""Outputs as WebDataset tars: samples that other programs and `emu tokenize` read, in bytes that depend on the requests alone."""

import io
import json
import tarfile

import pytest
from PIL import Image

from emu import Emu
from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.media import read_provenance
from tests.batch_toys import use, words, write_lines
from tests.tokenizing_toys import files_of

TARS = ("--format", "webdataset", "--tar-size", 2)


@pytest.fixture
def run(tiny_emu, tmp_path, monkeypatch):
    """Runs a command on lines of `write_lines` without reading the model again, and returns its exit code."""
    use(monkeypatch, tiny_emu)
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path)
    return lambda output, *more, command="generate-images": main(words(command, "prompts.jsonl", output, *more))


def samples(folder):
    """The members of all tars by name, each name once, in order."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                assert entry.name not in found and entry.isreg()
                assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) == (0, 0, 0, "", 0o644)
                found[entry.name] = tar.extractfile(entry).read()
    return found


def test_a_sample_is_the_picture_of_a_plain_file_and_what_made_it(run, tmp_path):
    assert run("plain") == run("tars", *TARS) == 1
    plain = {name: data for name, data in files_of(tmp_path / "plain").items() if name[:6].isdecimal()}
    found = samples(tmp_path / "tars")
    assert {name: data for name, data in found.items() if name.endswith(".png")} == plain
    names = list(found)
    assert names[::2] == sorted(plain) and [name.split(".")[1] for name in names] == ["png", "json"] * len(plain)
    about = json.loads(found[names[1]])
    assert (about["prompt"], about["seed"], about["label"], about["settings"]["guidance_scale"]) == (
        "a ball 0",
        0,
        0,
        2.0,
    )
    assert about.items() >= read_provenance(tmp_path / "plain" / names[0]).items()
    assert [name[:6] for name in files_of(tmp_path / "tars")][:3] == ["000000", "000001", "000002"]
    assert files_of(tmp_path / "plain")["overview.png"] == files_of(tmp_path / "tars")["overview.png"]


def test_the_manifest_names_the_tar_and_the_members_of_each_request(run, tmp_path):
    assert run("out", *TARS) == 1
    for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        with tarfile.open(tmp_path / "out" / record["files"][0]) as tar:
            picture, about = (tar.extractfile(name).read() for name in record["members"])
        with Image.open(io.BytesIO(picture)) as image:
            assert image.size == tuple(record["size"][::-1])
        assert json.loads(about)["request"] == record["request"]


def test_tokenize_reads_the_tars_of_pictures_and_of_clips(run, tiny_emu, tmp_path):
    tiny_emu.tokenizer.save_pretrained("tokenizer")
    assert run("images", *TARS) == 1 and run("clips", *TARS, "--frames", 4, command="generate-videos") == 1
    for folder in ("images", "clips"):
        source = f"webdataset:{tmp_path / folder}/*.tar"
        assert main(["tokenize", source, "--tokenizer", "tokenizer", "--output", f"{folder}-shards"]) == 0
    images, clips = TokenShards("images-shards"), TokenShards("clips-shards")
    assert len(images) == 5 and len(clips) == 5
    assert tiny_emu.tokenizer.decode(images.document(0, 0).ids)[0].strip() == "a ball 0"


def test_finished_samples_are_never_drawn_or_packed_again(run, tmp_path, monkeypatch):
    assert run("out", *TARS) == 1
    before = files_of(tmp_path / "out")
    monkeypatch.setattr(Emu, "iter_images", lambda self, prompts, **options: pytest.fail(f"{prompts} drawn again"))
    assert run("out", *TARS) == 1 and files_of(tmp_path / "out") == before


def test_more_lines_come_into_more_tars(run, tmp_path):
    assert run("out", *TARS) == 1
    before = samples(tmp_path / "out")
    write_lines(tmp_path, 9)
    assert run("out", *TARS) == 1
    assert samples(tmp_path / "out").items() > before.items() and len(samples(tmp_path / "out")) == len(before) + 4


def test_a_folder_has_one_format_of_a_request(run, tmp_path, capsys):
    assert run("plain") == run("tars", *TARS) == 1
    assert run("plain", *TARS) == run("tars") == 2
    told = capsys.readouterr().err
    assert "5 of these requests are finished in plain in the format files, and --format is webdataset" in told
    assert "give --format webdataset, or name another folder" in told


@pytest.mark.parametrize("number", [0, -1])
def test_a_tar_holds_one_sample_at_least(run, capsys, number):
    assert run("out", "--format", "webdataset", "--tar-size", number) == 2
    assert f"--tar-size is {number}" in capsys.readouterr().err


def test_a_tar_ends_when_its_pixels_are_many(run, tmp_path, monkeypatch):
    monkeypatch.setattr("emu.cli.batch_outputs.TAR_BYTES", 3 * 8 * 8)
    assert run("out", "--format", "webdataset") == 1
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
