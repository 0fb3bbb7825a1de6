"""Blocks of which some cells are kept and the others are generated.

A prompt shows the kept codes with holes between them (`emu/layouts/infill.py`); what is generated is the codes of the holes, in raster
order and exactly as many. Nothing is drawn at a kept cell, so that kept codes cannot change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.grid_job import GridJob
from emu.generation.sampling import Sampling
from emu.layouts import BlockTemplate, Layout, hidden_places, hidden_template, hide


@dataclass(frozen=True)
class PartialBlocks:
    """Blocks of which some cells are to be generated, one for each of N prompts.

    Attributes:
        layout: the grammar.
        template: of a block.
        codes: (N, *shape) int64; 0 at hidden cells.
        hidden: (N, *cells) bool.
    """

    layout: Layout
    template: BlockTemplate
    codes: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, layout: Layout, template: BlockTemplate, codes: Tensor, hidden: Tensor, prompts: int) -> PartialBlocks:
        """Check the cells; see the attributes.

        Args:
            codes: (N, *shape), or (1, *shape) for all prompts; what stands at hidden cells is not read.
            hidden: (N, *cells) bool, or (1, *cells).

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
        return cls(layout, template, codes, hidden)

    @property
    def unfinished(self) -> list[int]:
        """Numbers of the blocks in which a cell is hidden."""
        return self.hidden.flatten(1).any(1).nonzero()[:, 0].tolist()

    def job(
        self, sampling: Sampling, prompts: Sequence[Tensor], negatives: Sequence[Tensor], *, window: int, streams: int
    ) -> GridJob:
        """The job of generating the hidden codes of the unfinished blocks, of which there is one at least.

        Blocks with fewer holes than others run on to the end; what is drawn after their last hole is not read.

        Args:
            prompts, negatives: N each, ending in the header of the block; without guidance negatives are not read.

        Raises:
            ValueError: the vocabulary has no control for holes, or a window has no token to begin with.
        """
        shown, following = {}, []
        for number in self.unfinished:
            ids = self.template.fill(self.codes[number])
            (block, _), _ = hide(self.layout, self.template, ids, torch.zeros(len(ids)), self.hidden[number])
            shown[number] = block
            following.append(hidden_template(self.template, hidden_places(self.template, self.hidden[number])))
        longest = max(following, key=len)
        return GridJob.of(
            longest,
            longest.shape,
            sampling,
            [torch.cat([prompts[number], block]) for number, block in shown.items()],
            [torch.cat([negatives[number], block]) for number, block in shown.items()] if sampling.guided else (),
            window=window,
            prefix_codes=None,
            streams=streams,
        )

    def filled(self, drawn: Tensor, streams: int) -> Tensor:
        """(N * streams, *shape) int64: the blocks, with what was drawn for the unfinished ones.

        Args:
            drawn: (unfinished blocks * streams, most hidden codes) int64, the streams of a block side by side.
        """
        found, some = self.codes.repeat_interleave(streams, 0), self.unfinished
        for row, codes in enumerate(drawn):
            number, stream = some[row // streams], row % streams
            block, hidden = found[number * streams + stream], self.hidden[number]
            block[hidden] = codes[: block[hidden].numel()].view_as(block[hidden])
        return found
