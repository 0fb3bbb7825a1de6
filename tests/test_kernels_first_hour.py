"""The first hour on a GPU: parts that are stopped or fail are run again, those that have passed are not, and a page says which is which."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "first_hour.py"


@pytest.fixture
def first_hour(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_hour", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "first_hour", module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_a_part_that_failed_is_run_again_and_one_that_passed_is_not(
    first_hour: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"{{python}} -c \"import pathlib; pathlib.Path('{tmp_path}/note').open('a').write('x')\""
    again = f"{{python}} -c \"import pathlib, sys; sys.exit(0 if pathlib.Path('{tmp_path}/ready').exists() else 3)\""
    parts = (
        first_hour.Part("one", "that passes", note, note),
        first_hour.Part("two", "that fails at first", again, again),
        first_hour.Part("three", "whose program is missing", "no-such-program --really", "no-such-program"),
        first_hour.Part("four", "that hangs", '{python} -c "import time; time.sleep(60)"', "{python} -c 0"),
    )
    monkeypatch.setattr(first_hour, "PARTS", parts)
    monkeypatch.setattr(first_hour, "LIMIT", 2)
    folder = tmp_path / "hour"
    assert first_hour.main(["--folder", str(folder)]) == 1
    said = capsys.readouterr().out
    assert (
        "ended with code 3" in said
        and "no-such-program is not on this machine" in said
        and "stopped after 2 seconds" in said
    )
    (tmp_path / "ready").touch()
    assert first_hour.main(["--folder", str(folder), "--dry-run"]) == 1
    assert {name: found.passed for name, found in first_hour.read(folder).items()} == {
        "one": True, "two": True, "three": False, "four": True,
    }  # fmt: skip
    assert (tmp_path / "note").read_text() == "x"
    page = (folder / "index.html").read_text()
    assert "that fails at first" in page and "no-such-program is not on this machine" in page


@pytest.mark.slow
def test_every_part_runs_in_small(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--dry-run", "--folder", tmp_path], capture_output=True, text=True)
    logs = "".join(f"{log.name}\n{log.read_text()[-800:]}" for log in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + logs
    assert len(list(tmp_path.glob("*.csv"))) >= 7
