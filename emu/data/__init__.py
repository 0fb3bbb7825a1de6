"""Training data: documents by number, mixtures and orders without state, packed rows."""

from emu.data.loader import EvaluationLoader, PackedLoader, StepLoader
from emu.data.mixture import Mixture, Reference
from emu.data.packing import Packed, pack, plan_rows
from emu.data.permutation import KeyedPermutation, derive_key
from emu.data.sources import DocumentSource, FunctionSource, ListSource

__all__ = [
    "DocumentSource",
    "EvaluationLoader",
    "FunctionSource",
    "KeyedPermutation",
    "ListSource",
    "Mixture",
    "Packed",
    "PackedLoader",
    "Reference",
    "StepLoader",
    "derive_key",
    "pack",
    "plan_rows",
]
