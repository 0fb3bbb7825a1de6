"""Training data: documents by number, mixtures and orders without state, packed rows.

Names are loaded when they are first asked for: sources of raw documents live in this package and need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.data.block_mixture import BlockMixture
    from emu.data.document_sources import DocumentSource, FunctionSource, ListSource, MeasuredSource
    from emu.data.loader import EvaluationLoader, PackedLoader, StepLoader
    from emu.data.mixture import Mixture, Reference
    from emu.data.row_loader import RowLoader
    from emu.packing import Packed, pack, plan_rows
    from emu.randomness import KeyedPermutation, derive_key

_HOMES = {
    "emu.data.block_mixture": ("BlockMixture",),
    "emu.data.document_sources": ("DocumentSource", "FunctionSource", "ListSource", "MeasuredSource"),
    "emu.data.loader": ("EvaluationLoader", "PackedLoader", "StepLoader"),
    "emu.data.mixture": ("Mixture", "Reference"),
    "emu.data.row_loader": ("RowLoader",),
    "emu.packing": ("Packed", "pack", "plan_rows"),
    "emu.randomness": ("KeyedPermutation", "derive_key"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BlockMixture",
    "DocumentSource",
    "EvaluationLoader",
    "FunctionSource",
    "KeyedPermutation",
    "ListSource",
    "MeasuredSource",
    "Mixture",
    "Packed",
    "PackedLoader",
    "Reference",
    "RowLoader",
    "StepLoader",
    "derive_key",
    "pack",
    "plan_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'emu.data' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
