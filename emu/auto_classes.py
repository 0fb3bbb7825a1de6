"""Makes transformers' Auto classes know the model type "emu" without loading transformers for those who do not use it.

`emu.model` registers itself when it is imported; all that is left to do is to import it as soon as transformers is there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterTransformers(MetaPathFinder):
    """Finds transformers where everybody else would, and imports `emu.model` behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module("emu.model")

        loader.exec_module = execute_and_register


def register_when_transformers_loads() -> None:
    """Register now if transformers is loaded, else right after it is."""
    if "transformers" in sys.modules:
        importlib.import_module("emu.model")
    else:
        sys.meta_path.insert(0, _AfterTransformers())
