"""Pictures and clips are opened and converted in one place, so that everyone sees the same pixels."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READERS = ROOT / "tokenizers" / "emu_tokenizers" / "pixels"
ALLOWED = {
    "emu/media.py": {"av.open": "writes MP4"},
}
"""File to the call it may make elsewhere, and why."""


def calls(file: Path):
    """(line, what) of each call that opens or converts a picture or a clip."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        if node.func.attr == "open" and owner.split(".")[-1] in ("Image", "av"):
            yield node.lineno, f"{owner.split('.')[-1]}.open"
        if node.func.attr == "convert" and [ast.unparse(word) for word in node.args[:1]] == ["'RGB'"]:
            yield node.lineno, "convert"
        if node.func.attr == "exif_transpose":
            yield node.lineno, "exif_transpose"


@pytest.mark.parametrize("folder", ["emu", "tokenizers", "kernels", "recipes"])
def test_pictures_are_opened_and_converted_in_one_room(folder):
    wrong = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if file.is_relative_to(READERS):
            continue
        wrong += [f"{name}:{line} {what}" for line, what in calls(file) if what not in ALLOWED.get(name, {})]
    assert not wrong, f"use emu_tokenizers.pixels (open_image, to_rgb, VideoFile) or emu.Video.open: {wrong}"


def test_the_test_sees_what_it_forbids(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "PIL.Image.open(f)\nav.open(f)\nx.convert('RGB')\nx.convert('L')\nImageOps.exif_transpose(x)\nopen(f)\n"
    )
    assert [what for _, what in calls(file)] == ["Image.open", "av.open", "convert", "exif_transpose"]


def test_the_process_that_decodes_clips_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, emu_tokenizers.pixels.clip_worker, emu_tokenizers.pixels.listing; print(*sys.modules)"
    paths = {"PYTHONPATH": ":".join(str(ROOT / part) for part in ("tokenizers", "kernels"))}
    import os

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **paths})
    assert told.returncode == 0, told.stderr
    assert not {"torch", "transformers", "lightning", "datasets"} & set(told.stdout.split())
