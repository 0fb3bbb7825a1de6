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

_OURS = ("emu", "emu_tokenizers", "emu_kernels")


class _AfterTransformers(MetaPathFinder):
    """Finds transformers where everybody else would, and registers behind it."""

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
                if not _one_of_ours_is_loading():
                    register()

        loader.exec_module = execute_and_register


def _one_of_ours_is_loading() -> bool:
    """Whether transformers was asked for by a package of ours, which `emu.model` may need whole."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in _OURS]
    return any(getattr(module.__spec__, "_initializing", False) for module in modules)


def register() -> None:
    """Register with `AutoConfig` and `AutoModelForCausalLM`."""
    importlib.import_module("emu.model")


def register_when_transformers_loads() -> None:
    """Register now if transformers is loaded, else right after somebody loads it."""
    if "transformers" not in sys.modules:
        sys.meta_path.insert(0, _AfterTransformers())
    else:
        register()
