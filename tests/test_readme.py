"""The README: every Python block runs as it stands, every link leads somewhere, every command exists."""

import glob
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from emu.cli.main import available, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RELEASED = re.compile(
    r"^## Run released.*?(?=^## )", re.DOTALL | re.MULTILINE
)  # needs weights: tests/test_hub_readme.py runs it on stand-ins
BLOCKS = re.findall(r"^```python\n(.*?)^```", RELEASED.sub("", README), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[-1][:40] for block in BLOCKS])
def test_python_blocks_run_as_they_stand(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_there_is_an_example_of_every_job():
    jobs = ("generate_images", "generate_videos", "first_frames", "generate_text", "tokenizer.encode", "labels=")
    assert all(any(job in block for block in BLOCKS) for job in jobs)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), (
            f"README.md links to {target}, which does not exist"
        )


def test_commands_exist():
    commands = set(re.findall(r"^emu ([a-z-]+)", README, re.MULTILINE))
    assert commands and commands <= set(available()), f"README.md names {commands - set(available())}"
    targets = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def commands_of(title):
    section = re.search(rf"^## {title}\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]
    lines = re.search(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1].splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.slow
def test_a_tokenizer_is_trained_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands_of("Train a tokenizer"):
        few = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"] if words[0] != "evaluate" else []
        assert main([*words, *few]) == 0, words
    assert Path("runs/vision-tokenizer/tokenizer.png").is_file()


@pytest.mark.slow
def test_worlds_are_trained_on_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"fit": ["--trainer.max_steps", "2"], "evaluate": ["--documents", "30", "--samples", "1000"]}
    for words in commands_of("Know how good a model is"):
        assert main([*words, *few[words[0]]]) == 0, words
    assert "excess/shapes-1/text-to-image" in json.loads(Path("runs/shapes/metrics.json").read_text())


def test_shards_are_made_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "grey").save("cat.png")
    line = re.search(r"# (\{.*\}) a line", README[README.index("## Your own data") :])[1]
    Path("pairs.jsonl").write_text(line + "\n")
    for words in commands_of("Your own data"):
        assert main(words) == 0, words
    assert "1 document" in capsys.readouterr().out


def test_commands_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "a handwritten seven", "seed": 1}) + "\n")
    for words in commands_of("On the command line"):
        words = [name for word in words for name in (glob.glob(word) or [word])]
        if words[0].startswith("fit"):
            words += ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
        assert main(words) == 0 or words == ["doctor"], words  # which says what a test's machine lacks
    assert Path("my.yaml").is_file() and list(Path("clips").glob("*.gif"))
