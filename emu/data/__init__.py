"""Training data: documents by number, mixtures and orders without state, packed rows."""

from emu.data.document_sources import DocumentSource, FunctionSource, ListSource
from emu.data.loader import EvaluationLoader, PackedLoader, StepLoader
from emu.data.mixture import Mixture, Reference
from emu.packing import Packed, pack, plan_rows
from emu.randomness import KeyedPermutation, derive_key

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
