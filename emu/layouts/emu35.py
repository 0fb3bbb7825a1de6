"""Emu3.5's layout (`src/utils/input_utils.py` and `src/utils/generation_utils.py` of baaivision/Emu3.5).

Rows are joined by EOL and frames by EOF; EOI follows the last code directly. A model may plan before it writes: BOG text EOG plans the
document, BOC text EOC the next picture. A prompt ends in BSS, an answer in ESS. Vocabularies without these marks have no plans.
"""

from __future__ import annotations

from collections.abc import Sequence

from emu.layouts.grammar import BlockTemplate, IdRange, grid_template
from emu.layouts.meta_text import MetaTextLayout


class Emu35Layout(MetaTextLayout):
    """EOL between rows, EOF between frames, then EOI; plans and answers have their own marks."""

    name = "emu3.5"
    plan_marks = {"document": ("bog", "eog"), "image": ("boc", "eoc")}
    answer_marks = ("bss", "ess")

    def grid_block(self, grid: Sequence[int], ranges: Sequence[IdRange]) -> BlockTemplate:
        controls = self.vocabulary.controls
        return grid_template(grid, ranges, ([controls["eol"]], [controls["eof"]], [controls["eoi"]]), last=False)
