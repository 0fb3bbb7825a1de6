"""Blocks with hidden cells: what is shown of them first, then what is hidden (causal masking as in CM3, arXiv 2201.07520).

    header   the grid with HOLE at hidden cells, arranged as always, EOI   the hidden codes in raster order, EOI

Whoever writes left to right then sees all that is kept, on both sides of what is missing, before the first missing code. The second part
needs no header: the holes say how many codes it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu.layouts.grammar import FREE, BlockTemplate, Grammar
from emu.vocabulary import HOLE


def hide(
    layout: Grammar, template: BlockTemplate, ids: Tensor, weights: Tensor, hidden: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """A block with holes at hidden cells, and the codes that they stand for: (ids, weights) of each of the two parts.

    Codes keep their weights; holes and what is forced weigh 0.

    Args:
        layout: whose vocabulary has the control.
        template: of the block.
        ids, weights: (n,) of the whole block, from after its header on.
        hidden: bool, one for each cell of the grid.

    Raises:
        ValueError: the vocabulary has no control for holes, or `hidden` is of another shape or hides nothing.
    """
    if layout.hole is None:
        raise ValueError(
            f"blocks with hidden cells need the control {HOLE!r}, and the vocabulary has {list(layout.vocabulary.controls)}; make it "
            f"with controls=(*Layout.controls, {HOLE!r}), or name a free id: vocabulary.with_control({HOLE!r}, id)"
        )
    places = hidden_places(template, hidden)
    following = hidden_template(template, places)
    ended, weighed = following.forced.clone(), torch.zeros(len(following))
    ended[: len(places)], weighed[: len(places)] = ids[places], weights[places]
    shown, seen = ids.clone(), weights.clone()
    shown[places], seen[places] = layout.hole, 0.0
    return [(shown, seen), (ended, weighed)]


def hidden_places(template: BlockTemplate, hidden: Tensor) -> Tensor:
    """(k,) int64: positions of a block that belong to hidden cells, in order.

    Args:
        template: of the block.
        hidden: bool, one for each cell of the grid.

    Raises:
        ValueError: another type or shape, or no cell is hidden.
    """
    if hidden.dtype != torch.bool or tuple(hidden.shape) != template.cells:
        raise ValueError(f"hidden cells are {hidden.dtype} {tuple(hidden.shape)}; expected bool {template.cells}")
    if not hidden.any():
        raise ValueError("no cell is hidden; leave hidden out for a block that is written in order")
    # All codes of a cell are hidden together.
    return template.free.nonzero()[:, 0][hidden.cpu().flatten().repeat_interleave(template.codebooks)]


def hidden_template(template: BlockTemplate, places: Tensor) -> BlockTemplate:
    """Template of what follows a block in which these places (k,) are holes: their codes, and what closes the block."""
    closing = template.forced[-1:][template.forced[-1:] != FREE]
    none = torch.zeros_like(closing)
    return BlockTemplate(
        torch.cat([torch.full_like(places, FREE), closing]),
        torch.cat([template.first[places], none]),
        torch.cat([template.count[places], none]),
        (len(places),),
    )


def read_hidden(template: BlockTemplate, ids: Tensor, hole: int) -> tuple[Tensor, Tensor, int]:
    """Read a block with holes and the hidden codes after it.

    Args:
        template: of the block.
        ids: (n,) int64, from after the header on.
        hole: id of the control.

    Returns:
        Codes of the block's shape, the cells that are hidden (bool), and how many of the ids belong to it.

    Raises:
        ValueError: it is cut short, a cell is hidden in part, or another token stands where the grammar forces one or asks for a code.
    """
    end = len(template)
    shown, free = ids[:end].clone(), template.free[: len(ids)]
    holes = (shown == hole) & free
    shown[holes] = template.first[: len(ids)][holes]  # any code of the codebook, until the hidden ones are known
    codes = template.read(shown)
    by_cell = holes[template.free].unflatten(0, (-1, template.codebooks))
    partly = by_cell.any(1) & ~by_cell.all(1)
    if partly.any():
        place = int(template.free.nonzero()[int(partly.nonzero()[0]) * template.codebooks])
        raise ValueError(
            f"position {place} of a block of shape {template.shape} begins a cell of which some codes are holes and others are not"
        )
    following = hidden_template(template, holes.nonzero()[:, 0])
    try:
        codes.view(-1)[holes[template.free]] = following.read(ids[end:])
    except ValueError as error:
        raise ValueError(f"in the hidden codes, which begin at position {end} after the header: {error}") from error
    return codes, by_cell[:, 0].reshape(template.cells), end + len(following)
