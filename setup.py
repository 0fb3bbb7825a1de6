"""The one step that pyproject.toml cannot say: recipes/ of the checkout becomes emu/recipes/ of the wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
RECIPES = ROOT / "recipes"


class BuildWithRecipes(build_py):
    """Copies the recipes beside the packages; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in sorted(path for path in RECIPES.iterdir() if path.is_file()):
                target = Path(self.build_lib, "emu", "recipes", file.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithRecipes})
