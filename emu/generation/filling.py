"""Blocks of which some cells are kept and the others are generated.

A prompt shows the kept codes with holes between them (`emu/layouts/infill.py`); what is generated is the codes of the holes, in raster
order and exactly as many. Nothing is drawn at a kept cell, so that kept codes cannot change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emu.layouts import BlockTemplate, Layout, hidden_places, hidden_template, hide


@dataclass(frozen=True)
class PartialBlock:
    """A block of which some cells are to be generated.

    Attributes:
        template: of the block.
        codes: int64 of its shape; 0 at hidden cells.
        hidden: (*cells) bool.
    """

    template: BlockTemplate
    codes: Tensor
    hidden: Tensor

    def shown(self, layout: Layout) -> tuple[Tensor, BlockTemplate]:
        """Ids of the block with holes, and the template of the hidden codes after it.

        Raises:
            ValueError: no cell is hidden, or the vocabulary has no control for holes.
        """
        ids = self.template.fill(self.codes)
        (block, _), _ = hide(layout, self.template, ids, torch.zeros(len(ids)), self.hidden)
        return block, hidden_template(self.template, hidden_places(self.template, self.hidden))

    def filled(self, drawn: Tensor) -> Tensor:
        """Codes of the block's shape, with the hidden ones (k,) that were drawn."""
        found = self.codes.clone()
        found[self.hidden] = drawn.view_as(found[self.hidden])
        return found


def partial_blocks(template: BlockTemplate, codes: Tensor, hidden: Tensor, prompts: int) -> list[PartialBlock]:
    """Check the cells of blocks, one for each prompt.

    Args:
        template: of a block.
        codes: (N, *shape), or (1, *shape) for all prompts; what stands at hidden cells is not read.
        hidden: (N, *cells) bool, or (1, *cells).
        prompts: their number, N.

    Raises:
        TypeError, ValueError: another type or shape, or a kept code lies outside its range.
    """
    codes, hidden = torch.as_tensor(codes).cpu(), torch.as_tensor(hidden).cpu()
    if hidden.dtype != torch.bool or codes.is_floating_point() or codes.dtype == torch.bool:
        raise TypeError(f"codes are {codes.dtype}, hidden is {hidden.dtype}; expected integers and bool")
    for name, given, axes in (("codes", codes, template.shape), ("hidden", hidden, template.cells)):
        if tuple(given.shape[1:]) != axes or len(given) not in (1, prompts):
            raise ValueError(f"{name} has shape {tuple(given.shape)}; expected {(prompts, *axes)} or {(1, *axes)}")
    hidden = hidden.expand(prompts, *template.cells)
    codes = codes.to(torch.int64).expand(prompts, *template.shape)
    codes = codes.masked_fill(hidden.unsqueeze(-1) if template.codebooks > 1 else hidden, 0)
    for block in codes:
        template.fill(block)
    return [PartialBlock(template, block, cells) for block, cells in zip(codes, hidden, strict=True)]
