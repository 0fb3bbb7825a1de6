"""Layouts: how documents become sequences."""

from emu.layouts.cursor import Cursor
from emu.layouts.emu3 import Emu3Layout
from emu.layouts.emu35 import Emu35Layout
from emu.layouts.grammar import FREE, BlockTemplate
from emu.layouts.layout import Layout

LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (Emu3Layout, Emu35Layout)}
"""Layouts by the name that a saved tokenizer carries."""

__all__ = ["FREE", "LAYOUTS", "BlockTemplate", "Cursor", "Emu3Layout", "Emu35Layout", "Layout"]
