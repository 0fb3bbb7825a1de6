"""The page on released weights works as it stands, on tiny models of the same names."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from emu.cli.main import main
from emu.families.emu3.tiny import write_vision
from emu.hub.tiny_models import write

PAGE = Path(__file__).parents[1] / "docs" / "released.md"
BRIEFLY = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
BRIEFLY += ["--data.init_args.row_length", "64", "--model.optimizer.warmup_steps", "0"]


@pytest.fixture
def page():
    return PAGE.read_text().replace("512", "32")


def test_python_and_commands_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Emu3-Gen", "Emu3-Chat"):
        write("emu3", name, alone=True, hidden_size=32)
    write_vision("Emu3-VisionTokenizer")
    write("emu3.5", "Emu3.5", hidden_size=32)
    Image.new("RGB", (32, 32)).save("cat.png")
    Path("pictures.jsonl").write_text(json.dumps({"items": [{"caption": "a cat"}, {"image": "cat.png"}]}) + "\n")
    blocks = re.findall(r"```(python|sh)\n(.*?)```", page, re.DOTALL)
    assert {language for language, _ in blocks} >= {"python"}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), {"__name__": "readme"})
            continue
        for line in block.splitlines():
            words = line.split("#")[0].split()
            if "lora-emu3" in words:
                if find_spec("peft") is None:
                    continue
                words += BRIEFLY
            if words[:1] == ["emu"]:
                assert main(words[1:]) == 0, line
    assert Path("girl.png").is_file() and Path("shards").is_dir() and Path("emu3-back").is_dir()
