"""Batch generation from prompt files: one output a line, bad lines reported, stopped runs taken up again."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu import Emu
from emu.cli import describe, generate_images, generate_videos
from emu_tokenizers.files import LOCK_FILE

ROOT = Path(__file__).parents[1]
STEMS = ["000001-seed5", "000002-seed1", "000003-seed2"]


@pytest.fixture(scope="module")
def model(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_emu.save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, tmp_path, tiny_emu, monkeypatch):
    """Writes lines to a prompt file, runs a command on it without reading the model again, and returns its exit code."""

    def loaded(path, *, deterministic, **options):
        assert Path(path) == model
        return Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, deterministic=deterministic)

    monkeypatch.setattr(Emu, "from_pretrained", loaded)

    def run_on(command, *lines, options=()):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        arguments = [str(prompts), "--model", str(model), "--output", str(tmp_path / "out"), "--device", "cpu"]
        return command.main([*arguments, *options])

    return run_on


def manifest(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]


def test_every_line_gives_one_picture_with_its_seed(run, tmp_path):
    lines = [{"prompt": "a red circle", "seed": 5}, {"prompt": "a ball", "size": [16, 8], "label": 7}, {"prompt": ""}]
    assert run(generate_images, *lines) == 0
    records = manifest(tmp_path)
    names = [f"{stem}-{record['request'][:8]}.png" for stem, record in zip(STEMS, records, strict=True)]
    assert [record["files"] for record in records] == [[name] for name in names]
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != LOCK_FILE)
    assert written == [*names, "manifest.jsonl", "overview.png"]
    assert [record["seed"] for record in records] == [5, 1, 2]
    assert (records[1]["label"], records[1]["size"], records[0]["guidance_scale"]) == (7, [16, 8], 2.0)
    with Image.open(tmp_path / "out" / names[1]) as image:
        assert image.size == (8, 16) and image.text["seed"] == "1"


def test_lines_give_what_the_same_call_gives(run, tmp_path, tiny_emu):
    settings = {"size": (16, 16), "guidance_scale": 3.0, "negative_prompt": "a ball", "temperature": 0.7, "top_k": 5}
    line = {"prompt": "a red circle", "seed": 4, **settings}
    others = [{"prompt": "a ball", "seed": seed} for seed in range(3)]
    assert run(generate_images, *others, line, options=["--deterministic"]) == 0
    (expected,) = tiny_emu.generate_images("a red circle", seed=4, deterministic=True, **settings)
    (file,) = (tmp_path / "out").glob("000004-seed4-*.png")
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected.image))


def test_options_hold_for_lines_that_say_nothing(run, tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b", "top_k": 3, "seed": 1}]
    options = ["--size", "16", "12", "--top-k", "7", "--seed", "100"]
    assert run(generate_images, *lines, options=options) == 0
    assert [(r["size"], r["top_k"], r["seed"]) for r in manifest(tmp_path)] == [([16, 12], 7, 100), ([16, 12], 3, 1)]


def test_bad_lines_are_reported_with_their_number_and_the_rest_is_done(run, tmp_path, capsys):
    lines = [
        "{not json",
        {"prompt": "a ball"},
        {"text": "a ball"},
        {"prompt": "a", "sise": [8, 8]},
        "",
        {"prompt": "a", "size": [8, 9]},
        {"prompt": 3},
        {"prompt": "a", "seed": "five"},
        {"prompt": "a", "guidance_scale": -1},
        "[1]",
        {"prompt": "a\ud800"},
        {"prompt": "a ball"},
    ]
    assert run(generate_images, *lines) == 1
    told = capsys.readouterr().err
    for number, reason in {
        1: "not JSON",
        3: "unknown key 'text'",
        4: "unknown key 'sise'",
        6: "factor 4",
        7: "prompt is 3; expected text",
        8: "seed is 'five'",
        9: "guidance_scale is -1",
        10: "expected a JSON object",
        11: "surrogate",
    }.items():
        assert [line for line in told.splitlines() if f"prompts.jsonl line {number}: " in line and reason in line], (
            number
        )
    assert "line 5:" not in told
    assert [record["line"] for record in manifest(tmp_path)] == [2, 12]


def test_a_second_run_does_only_what_is_left(run, tmp_path, monkeypatch):
    lines = [{"prompt": f"a ball {index}"} for index in range(4)]
    assert run(generate_images, *lines[:2]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*.png")}
    drawn = counted(monkeypatch)
    assert run(generate_images, *lines) == 0
    assert drawn == ["a ball 2", "a ball 3"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert [record["line"] for record in manifest(tmp_path)] == [1, 2, 3, 4]
    drawn.clear()
    assert run(generate_images, *lines) == 0
    assert drawn == []


def test_changed_lines_and_lost_files_are_done_again(run, tmp_path, monkeypatch):
    lines = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "three"}]
    assert run(generate_images, *lines) == 0
    (third,) = (tmp_path / "out").glob("000003-*.png")
    third.unlink()
    drawn = counted(monkeypatch)
    assert run(generate_images, lines[0], {"prompt": "two", "guidance_scale": 5}, lines[2]) == 0
    assert sorted(drawn) == ["three", "two"]
    assert [(r["line"], r["guidance_scale"]) for r in manifest(tmp_path)] == [(2, 2.0), (1, 2.0), (2, 5), (3, 2.0)]


def test_a_run_that_was_killed_goes_on(run, tmp_path, monkeypatch):
    lines = [{"prompt": f"a ball {index}"} for index in range(5)]
    draw = Emu.iter_images

    def stop_at_the_fifth(self, prompts, **options):
        for prompt, result in zip(prompts, draw(self, prompts, **options), strict=True):
            if prompt == "a ball 4":
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(Emu, "iter_images", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(generate_images, *lines, options=["--batch-size", "2"])
    with (tmp_path / "out" / "manifest.jsonl").open("a") as file:
        file.write('{"line": 5, "prom')  # cut in the middle of a record
    monkeypatch.setattr(Emu, "iter_images", draw)
    drawn = counted(monkeypatch)
    assert run(generate_images, *lines, options=["--batch-size", "2"]) == 0
    assert drawn == ["a ball 4"]
    assert [record["line"] for record in manifest(tmp_path)] == [1, 2, 3, 4, 5]


def counted(monkeypatch):
    """The prompts that are drawn from now on."""
    drawn, draw = [], Emu.iter_images

    def counting(self, prompts, **options):
        drawn.extend(prompts)
        return draw(self, prompts, **options)

    monkeypatch.setattr(Emu, "iter_images", counting)
    return drawn


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_pictures_do_not_depend_on_the_batch(run, tmp_path, tiny_emu, batch_size):
    lines = [{"prompt": prompt, "size": [16, 16]} for prompt in ("a", "a red circle", "a ball")]
    assert run(generate_images, *lines, options=["--batch-size", batch_size, "--deterministic"]) == 0
    for line, path in enumerate(sorted((tmp_path / "out").glob("0*.png"))):
        (alone,) = tiny_emu.generate_images(lines[line]["prompt"], seed=line, size=(16, 16), deterministic=True)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), np.asarray(alone.image))


def test_clips_are_written_as_frames_and_animations(run, tmp_path):
    lines = [{"prompt": "a ball", "frames": 5, "fps": 5}, {"prompt": "a ball rolling left"}]
    assert run(generate_videos, *lines) == 0
    records = manifest(tmp_path)
    (first, _, *_), (second, animation, *_) = (record["files"] for record in records)
    assert first == f"000001-seed0-{records[0]['request'][:8]}" and animation == f"{second}.gif"
    assert len(list((tmp_path / "out" / first).glob("*.png"))) == 5
    assert len(list((tmp_path / "out" / second).glob("*.png"))) == 8
    with Image.open(tmp_path / "out" / animation) as image:
        assert image.size == (8, 8)
    with Image.open(tmp_path / "out" / "overview.png") as image:  # rows of up to eight frames, with gaps of 2 pixels
        assert image.size == (2 + (2 + 8 * 10) + 2, 2 + 2 * (2 + 10 + 2))
    assert [(record["frames"], record["fps"]) for record in records] == [(5, 5), (8, 4)]


def test_clips_go_on_from_files_beside_the_prompts(run, tmp_path, capsys):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "first.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [
        {"prompt": "a ball", "first_frames": "first.png"},
        {"prompt": "a ball", "first_frames": ["first.png"] * 5, "frames": 12},
        {"prompt": "a ball", "first_frames": "nowhere.png"},
        {"prompt": "a ball", "first_frames": "broken.png"},
        {"prompt": "a ball"},
        {"prompt": "a ball", "frames": 0},
    ]
    assert run(generate_videos, *lines) == 1
    told = capsys.readouterr().err
    assert (
        "line 3: there is no file" in told
        and "line 4: " in told
        and "broken.png" in told
        and "line 6: frames is 0" in told
    )
    assert [record["line"] for record in manifest(tmp_path)] == [1, 2, 5]


def test_a_missing_or_empty_prompt_file_is_refused(model, tmp_path):
    options = ["--model", str(model), "--output", str(tmp_path / "out")]
    with pytest.raises(FileNotFoundError, match=r"there is no prompt file .*nowhere\.jsonl"):
        generate_images.main([str(tmp_path / "nowhere.jsonl"), *options])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="is empty"):
        generate_images.main([str(tmp_path / "empty.jsonl"), *options])
    assert not (tmp_path / "out").exists()


def test_describe_tells_of_each_picture_and_of_what_is_none(model, tmp_path, capsys):
    Image.new("RGB", (20, 31), "white").save(tmp_path / "white.png")
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    (tmp_path / "broken.png").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("white.png", "broken.png", "grey.png", "nowhere.png")]
    assert describe.main([*files, "--model", str(model), "--json", "--max-new-tokens", "3", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [files[0], files[2]]
    assert "broken.png" in err and "there is no file" in err


@pytest.mark.parametrize("recipe", ["generate_images.py", "generate_videos.py"])
def test_recipes_run_as_scripts(model, tmp_path, monkeypatch, recipe):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a ball"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [recipe, "prompts.jsonl", "--model", str(model), "--output", "out"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / recipe), run_name="__main__")
    assert ended.value.code == 0
    assert len(manifest(tmp_path)) == 1
