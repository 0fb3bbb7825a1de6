"""Emu3's layout (arXiv 2409.18869, section 2.4; `processing_emu3.py` of baaivision/Emu3).

Every row of codes ends in EOL and every frame in EOF; EOI closes the block. An image of h x w codes has h(w + 1) + 2 tokens after the
image mark.
"""

from __future__ import annotations

from collections.abc import Sequence

from emu.layouts.grammar import BlockTemplate, IdRange, grid_template
from emu.layouts.meta_text import MetaTextLayout


class Emu3Layout(MetaTextLayout):
    """Rows end in EOL, frames in EOF, then EOI."""

    name = "emu3"

    def grid_block(self, grid: Sequence[int], ranges: Sequence[IdRange]) -> BlockTemplate:
        controls = self.vocabulary.controls
        return grid_template(grid, ranges, ([controls["eol"]], [controls["eof"]], [controls["eoi"]]), last=True)
