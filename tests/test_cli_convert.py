"""The folder that `emu convert` writes: one process at a time, complete or absent."""

import pytest

from emu import Emu
from emu.cli import convert as command
from emu.cli.main import main
from emu_tokenizers.files import LOCK_FILE, holding


@pytest.fixture(scope="module")
def source(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "tiny"
    tiny_emu.save_pretrained(folder)
    return folder


@pytest.fixture
def convert(source, tmp_path):
    return lambda *words: main(["convert", str(source), str(tmp_path / "new"), "--to", "emu", *words])


def test_two_conversions_never_write_into_one_folder(convert, tmp_path, capsys):
    with holding(tmp_path / "new", "emu convert"):
        assert convert() == convert("--overwrite") == 2
    assert capsys.readouterr().err.count("is in use by") == 2
    assert convert() == 0  # a lock without a process, as after a kill, is no obstacle
    assert not (tmp_path / "new" / LOCK_FILE).exists()
    Emu.from_pretrained(tmp_path / "new", device="cpu")
    assert convert() == 2 and "exists; choose another folder" in capsys.readouterr().err
    assert convert("--overwrite") == 0 and not (tmp_path / "new" / LOCK_FILE).exists()


def test_a_conversion_that_fails_leaves_nothing(convert, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("the source cannot be expressed")

    monkeypatch.setattr(command, "convert", fail)
    assert convert() == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_that_name_stays(convert, tmp_path, capsys):
    (tmp_path / "new").write_text("mine")
    assert convert("--overwrite") == 2
    assert "is a file" in capsys.readouterr().err and (tmp_path / "new").read_text() == "mine"


def test_overwriting_replaces_a_model_and_nothing_else(convert, tmp_path, capsys):
    (tmp_path / "new" / "other").mkdir(parents=True)
    (tmp_path / "new" / "other" / "notes").write_text("mine")
    assert convert("--overwrite") == 2
    assert "is no model's folder" in capsys.readouterr().err
    assert (tmp_path / "new" / "other" / "notes").read_text() == "mine"
