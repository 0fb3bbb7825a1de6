"""What the commands say and leave behind when they read released folders."""

import os
import subprocess
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from emu import Emu
from emu.cli.main import main
from emu.hub.tiny_models import main as tiny_models
from emu.hub.tiny_models import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("emu3", tmp_path_factory.mktemp("released") / "Emu3-Gen")


def test_python_m_emu_is_the_command():
    paths = os.pathsep.join(path for path in sys.path if path)
    for words, code in ((["--version"], 0), (["fitt"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "emu", *words],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code and ("emu 0." in done.stdout or "no command 'fitt'" in done.stderr)


@pytest.mark.parametrize("wanted", [True, False])
def test_reading_and_writing_weights_draws_no_bar_and_leaves_settings_alone(wanted, folder, tmp_path, capsys):
    (enable_progress_bar if wanted else disable_progress_bar)()
    try:
        before = is_progress_bar_enabled(), are_progress_bars_disabled()
        emu = Emu.from_pretrained(folder, device="cpu")
        emu.save_pretrained(tmp_path / "whole")
        emu.model.save_pretrained(tmp_path / "model")
        emu.tokenizer.vision.save_pretrained(tmp_path / "vision", max_shard_size="1GB")
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        write("transformers", tmp_path / "theirs")
        assert (is_progress_bar_enabled(), are_progress_bars_disabled()) == before == (wanted, not wanted)
    finally:
        enable_progress_bar()
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_modes_of_the_umask(mask, folder, tmp_path):
    before = os.umask(mask)
    try:
        emu = Emu.from_pretrained(folder, device="cpu")
        emu.save_pretrained(tmp_path / "whole")
        emu.model.save_pretrained(tmp_path / "model")
        assert main(["convert", str(folder), str(tmp_path / "converted"), "--to", "emu3"]) == 0
    finally:
        os.umask(before)
    for name in ("whole", "model", "converted"):
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("model", ["nowhere", "some-one/nowhere"])
def test_a_missing_model_is_one_line(model, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a cat"}\n')
    words = [str(tmp_path / "prompts.jsonl"), "--model", model, "--output", str(tmp_path / "out")]
    assert main(["generate-images", *words]) == 2
    assert main(["convert", model, str(tmp_path / "target"), "--to", "emu"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(model in line for line in told)


def test_a_tiny_model_is_written_by_command(tmp_path, capsys):
    tiny_models(["emu3.5", str(tmp_path / "tiny")])
    assert Emu.from_pretrained(tmp_path / "tiny", device="cpu").tokenizer.layout.name == "emu3.5"
    with pytest.raises(SystemExit):
        tiny_models(["emu", str(tmp_path / "none")])
    assert "invalid choice: 'emu'" in capsys.readouterr().err
