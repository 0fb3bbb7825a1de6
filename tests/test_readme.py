"""README and pages: every Python block runs as it stands, every link leads somewhere, every command exists."""

import glob
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from emu.cli.main import available, main
from emu.configuration import import_object
from tests.page_blocks import PAGES, ROOT, command_lines, commands_of, python_blocks, section

README, DOCS = ROOT / "README.md", ROOT / "docs"
RELEASED = DOCS / "released.md"  # needs weights: tests/test_hub_readme.py runs it on tiny models
BLOCKS = [(page, block) for page in PAGES if page != RELEASED for block in python_blocks(page)]
RUN = {
    (README, "On the command line"),
    (DOCS / "data.md", "From a folder of pictures"),
    (DOCS / "training.md", "A vision tokenizer"),
    (DOCS / "training.md", "Your own data"),
    (DOCS / "training.md", "Know how good a model is"),
}
"""Sections whose commands the tests below run, one test each."""
SHOWN = {
    (README, "Install"),
    (README, "Serve"),
    (DOCS / "index.md", "Install"),
    (DOCS / "data.md", "One command"),
    (DOCS / "data.md", "Train on shards"),
}
"""Sections with commands that other tests run: test_house_installed.py, test_own_images.py, test_cli_join.py, and, slow,
test_own_videos.py and test_serving_process.py."""


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page.name}: {block.splitlines()[-1][:40]}" for page, block in BLOCKS]
)
def test_python_blocks_run_as_they_stand(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page.name, "exec"), {"__name__": "__main__"})


def test_there_is_an_example_of_every_job():
    jobs = ("generate_images", "generate_videos", "first_frames", "generate_text", "tokenizer.encode", "labels=")
    for blocks in (python_blocks(README), [block for page, block in BLOCKS if page != README]):
        assert all(any(job in block for block in blocks) for job in jobs)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        there = target.startswith("https://") or (page.parent / target).exists()
        assert there, f"{page.relative_to(ROOT)} links to {target}, which does not exist"


def test_commands_exist():
    commands = {line.split()[1] for page in PAGES for line in command_lines(page) if line.startswith("emu ")}
    commands -= {"fit:"}  # the beginning of a message
    assert commands <= set(available()), f"pages name {commands - set(available())}"
    targets = {line.split()[1] for page in PAGES for line in command_lines(page) if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_section_with_commands_is_run():
    for page in (README, DOCS / "index.md", DOCS / "generation.md", DOCS / "training.md", DOCS / "data.md"):
        for title in re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE):
            if re.search(r"^```sh\n(.*\n)*?emu ", section(page, title), re.MULTILINE):
                assert (page, title) in RUN | SHOWN, f"no test runs the commands of {page.name}, {title!r}"


@pytest.mark.slow
def test_a_tokenizer_is_trained_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands_of(DOCS / "training.md", "A vision tokenizer"):
        few = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"] if words[0] != "evaluate" else []
        assert main([*words, *few]) == 0, words
    assert Path("runs/vision-tokenizer/tokenizer.png").is_file()


@pytest.mark.slow
def test_worlds_are_trained_on_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"fit": ["--trainer.max_steps", "2"], "evaluate": ["--documents", "30", "--samples", "1000"]}
    for words in commands_of(DOCS / "training.md", "Know how good a model is"):
        assert main([*words, *few[words[0]]]) == 0, words
    assert "excess/shapes-1/text-to-image" in json.loads(Path("runs/shapes/metrics.json").read_text())


def test_shards_are_made_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "grey").save("cat.png")
    line = re.search(r"# (\{.*\}) a line", section(DOCS / "training.md", "Your own data"))[1]
    Path("pairs.jsonl").write_text(line + "\n")
    for words in commands_of(DOCS / "training.md", "Your own data"):
        assert main(words) == 0, words
    assert "1 document" in capsys.readouterr().out


def test_a_folder_of_pictures_becomes_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number,) * 3).save(f"photos/{number}.png")
        Path(f"photos/{number}.txt").write_text(f"a square of grey level {20 * number}")
    for words in commands_of(DOCS / "data.md", "From a folder of pictures"):
        assert main(words) == 0, words
    assert Path("shards/report.html").is_file() and Path("batch.png").is_file()
    sources = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (DOCS / "data.md").read_text(), re.DOTALL)[1])["data"]
    assert import_object(sources["class_path"])(**sources["init_args"]).weights == {"photos": 0.8, "notes": 0.2}


def test_commands_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "a handwritten seven", "seed": 1}) + "\n")
    steps = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    few = {
        "fit": [*steps, "--data.num_digits", "20"],
        "fit-tokenizer": [*steps, "--data.images", "2", "--data.clips", "1", "--trainer.limit_val_batches", "1"],
    }
    for words in commands_of(README, "On the command line"):
        words = [name for word in words for name in (glob.glob(word) or [word])]
        assert main([*words, *few.get(words[0], [])]) == 0 or words == ["doctor"], (
            words
        )  # which says what a test's machine lacks
    assert Path("my.yaml").is_file() and list(Path("clips").glob("*.gif"))
