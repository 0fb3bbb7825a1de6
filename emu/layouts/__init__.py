"""Layouts: how documents become sequences."""

from __future__ import annotations

from emu.layouts.cursor import Cursor
from emu.layouts.emu3 import Emu3Layout
from emu.layouts.emu35 import Emu35Layout
from emu.layouts.grammar import FREE, BlockTemplate, grid_template
from emu.layouts.infill import hidden_places, hidden_template, hide
from emu.layouts.layout import Layout
from emu.layouts.meta_text import MetaTextLayout
from emu_tokenizers.registry import Registry

LAYOUTS: Registry[type[Layout]] = Registry("layout", {layout.name: layout for layout in (Emu3Layout, Emu35Layout)})
"""Layouts by the name that a saved tokenizer carries."""

register = LAYOUTS.register
unregister = LAYOUTS.unregister

__all__ = [
    "FREE",
    "LAYOUTS",
    "BlockTemplate",
    "Cursor",
    "Emu3Layout",
    "Emu35Layout",
    "Layout",
    "MetaTextLayout",
    "grid_template",
    "hidden_places",
    "hidden_template",
    "hide",
    "register",
    "unregister",
]
