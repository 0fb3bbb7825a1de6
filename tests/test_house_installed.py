"""The wheel in a folder of its own, used from another one: what a user has after `pip install`, offline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emu.checkpoints.bundled import BUNDLED

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BUNDLED / "digits").is_dir(), reason="the bundled model is not trained yet"),
]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of an installation of the wheel without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command of the installation in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}

    def run_in_empty_folder(*command):
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_in_empty_folder


def test_python_finds_the_installed_packages(run, installed):
    names = "emu, emu_tokenizers, emu_kernels"
    told = run(sys.executable, "-c", f"import {names}\nfor module in ({names}): print(module.__file__)")
    assert all(line.startswith(str(installed)) for line in told.split())


def test_readme_blocks_run(run, tmp_path):
    readme = re.sub(r"(?ms)^## Run released.*?(?=^## )", "", (ROOT / "README.md").read_text())  # needs released weights
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(block)
    run(
        sys.executable, "-c", f"import runpy\nfor number in range({len(blocks)}): runpy.run_path(f'block{{number}}.py')"
    )


def test_the_transformer_trains_from_the_recipe(run, installed):
    run(str(installed / "bin" / "emu"), "fit", "--config", "digits", "--trainer.max_steps", "2")


def test_commands_and_recipes_are_there(run, installed, tmp_path):
    emu = str(installed / "bin" / "emu")
    assert "generate_images.py" in run(emu, "recipes")
    run(emu, "recipes", "copy", "generate_images.py")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a handwritten seven"}\n')
    run(sys.executable, "generate_images.py", "prompts.jsonl", "--output", "images")
    assert len(list((tmp_path / "images").glob("000001-seed0-*.png"))) == 1
