"""The recipe for Ray: two workers on this machine draw what one call draws; `make test-ray` runs these."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = Path(__file__).parents[1] / "recipes" / "generate_ray.py"
LINES = [
    {"prompt": "a ball"},
    {"prompt": "a red circle", "seed": 7, "size": [16, 8]},
    {"prompt": 5},
    "{not json",
    {"prompt": "a ball", "guidance_scale": 3.0},
    {"prompt": "a ball", "sise": 3},
    {"prompt": ""},
]
GOOD = [0, 1, 4, 6]


@pytest.fixture
def run(tiny_emu, tmp_path, monkeypatch):
    """Runs the recipe on `LINES` and returns its exit code."""
    tiny_emu.save_pretrained(tmp_path / "tiny")
    lines = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in LINES)
    (tmp_path / "prompts.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)

    def run_on(*words):
        monkeypatch.setattr(sys, "argv", ["generate_ray.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RECIPE), run_name="__main__")
        return ended.value.code

    return run_on


@pytest.fixture
def ray(monkeypatch):
    """Ray on this machine, for two workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_without_ray_the_recipe_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("prompts.jsonl", "--output", "out") == 2
    assert "pip install 'emu-tokens[ray]'" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.slow
def test_two_workers_draw_what_one_call_draws_as_files_and_as_a_table(run, ray, tiny_emu, capsys):
    import pyarrow.parquet

    words = ("prompts.jsonl", "--model", str(Path("tiny").resolve()), "--deterministic", "--batch-size", "2")
    assert run(*words, "--output", "files") == run(*words, "--output", "table", "--format", "parquet") == 1
    told = capsys.readouterr()
    for line in (3, 4, 6):
        assert told.err.count(f"prompts.jsonl line {line}: ") == 2
    assert told.out.count(", 3 bad lines") == 2
    table = pyarrow.parquet.read_table("table").to_pylist()
    assert [row["line"] for row in sorted(table, key=lambda row: row["line"])] == list(range(len(LINES)))
    written = {row["line"]: row["image"] for row in table if not row["error"]}
    files = {int(file.name[:6]) - 1: file.read_bytes() for file in Path("files").glob("*.png")}
    assert files == written and sorted(files) == GOOD
    for number in GOOD:
        line = {"seed": number, **LINES[number]}
        (alone,) = tiny_emu.generate_images(line.pop("prompt"), deterministic=True, **line)
        with Image.open(io.BytesIO(files[number])) as image:
            assert np.array_equal(np.asarray(image), np.asarray(alone.image))
    assert run(*words, "--output", "files") == 2 and "is not empty" in capsys.readouterr().err
