import subprocess
import sys

import pytest

from emu import recipes
from emu.cli.main import main


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "shapes.yaml").write_text("# Shapes in a minute\nseed_everything: 1\n")
    (folder / "draw.py").write_text('"""Draw what a file asks for."""\n')
    (folder / "draw.yaml").write_text("\n# Settings to draw with\n")
    (folder / "README.md").write_text("no recipe\n")
    monkeypatch.setattr(recipes, "recipe_folder", lambda: folder)
    return folder


def test_recipes_are_listed_with_their_first_line(shelf, capsys):
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "draw.py      Draw what a file asks for.",
        "draw.yaml    Settings to draw with",
        "shapes.yaml  Shapes in a minute",
    ]


def test_a_recipe_is_found_with_and_without_its_suffix(shelf):
    assert recipes.find_recipe("shapes") == recipes.find_recipe("shapes.yaml") == shelf / "shapes.yaml"
    assert recipes.find_recipe("draw", ".yaml") == shelf / "draw.yaml"
    assert recipes.find_recipe("draw.py") == shelf / "draw.py"
    with pytest.raises(
        FileNotFoundError, match="'shape'; did you mean shapes.yaml. The recipes are draw.py, draw.yaml, shapes.yaml"
    ):
        recipes.find_recipe("shape")
    with pytest.raises(FileNotFoundError, match="'shape'; did you mean shapes. The recipes are draw, shapes"):
        recipes.resolve_config("shape")
    with pytest.raises(FileNotFoundError, match="'quite another'; the recipes are"):
        recipes.find_recipe("quite another")


@pytest.mark.parametrize("command", ["fit", "fit-tokenizer"])
@pytest.mark.parametrize("words", [["--config", "shape"], ["--config=shape"], ["-c", "shapes", "--config", "shape"]])
def test_a_mistyped_recipe_is_told_before_torch_is_loaded(command, words):
    code = "import sys; from emu.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, command, *words], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["2", "False"] and "did you mean shapes?" in ran.stderr


def test_a_file_wins_over_a_recipe_of_its_name(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.resolve_config("shapes") == shelf / "shapes.yaml"
    (tmp_path / "shapes").write_text("mine")
    assert recipes.resolve_config("shapes").read_text() == "mine"


def test_a_recipe_is_copied_but_never_over_a_file(shelf, tmp_path, capsys):
    target = tmp_path / "mine" / "new.yaml"
    assert main(["recipes", "copy", "shapes", str(target)]) == 0
    assert target.read_text() == (shelf / "shapes.yaml").read_text()
    assert main(["recipes", "copy", "shapes", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["recipes", "copy", "shapes", str(tmp_path)]) == 0
    assert (tmp_path / "shapes.yaml").is_file()


def test_every_recipe_of_the_package_says_what_it_is():
    for path in recipes.list_recipes().values():
        assert len(recipes.describe_recipe(path)) > 10, path
