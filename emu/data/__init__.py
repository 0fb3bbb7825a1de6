"""Training data: documents by number, mixtures and orders without state, packed rows."""

from emu.data.block_mixture import BlockMixture
from emu.data.document_sources import DocumentSource, FunctionSource, ListSource, MeasuredSource
from emu.data.loader import EvaluationLoader, PackedLoader, StepLoader
from emu.data.mixture import Mixture, Reference
from emu.data.row_loader import RowLoader
from emu.packing import Packed, pack, plan_rows
from emu.randomness import KeyedPermutation, derive_key

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
