"""A model whose weights are read from files, some rows at a time: where it is split over ranks each reads no more than its own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from emu.model import EmuConfig, EmuForCausalLM
from emu.training.sharded_start import PIECE, build_empty, keep_share, own_rows
from emu.training.weight_sources import EMBEDDING, HEAD, WeightSource

CPU = torch.device("cpu")
Split = Callable[[EmuForCausalLM], None]
"""Is given a model on the meta device; leaves each parameter as this rank's share (FSDP2)."""


def keep_whole(model: EmuForCausalLM) -> None:
    """The `Split` of one process."""


@torch.no_grad()
def build_filled(
    config: EmuConfig, source: WeightSource, rows: Tensor | None, split: Split = keep_whole, device: torch.device = CPU
) -> EmuForCausalLM:
    """A model with weights of a source, float32; where the head was the embedding and is not any more, it starts as that.

    Args:
        config: of the model.
        source: of the weights.
        rows: where the row of each id of the model stands in the source, -1 for new ones, which start at the mean of the old rows; None
            where all stay as they are.
        split: leaves each rank its share.
        device: of the model.
    """
    model = build_empty(config, split, device)
    shares = dict(model.named_parameters(remove_duplicate=False))
    for name in source.shapes:
        if rows is not None and name in (EMBEDDING, HEAD):
            _place(shares[name], source, name, rows)
            continue
        local, begin = own_rows(shares[name])
        for first, some in pieces(source, name, begin, begin + local.shape[0]):
            keep_share(shares[name], some, first)
    if HEAD not in source.shapes and not config.tie_word_embeddings:
        own_rows(shares[HEAD])[0].copy_(own_rows(shares[EMBEDDING])[0])
    return model


def pieces(source: WeightSource, name: str, begin: int, end: int) -> Iterator[tuple[int, Tensor]]:
    """Rows of a tensor of the source from `begin` to `end`, some at a time, each time with the number of the first of them."""
    height, *rest = source.shapes[name]
    step = max(1, PIECE // (4 * max(1, torch.Size(rest).numel())))
    for first in range(begin, min(end, height), step):
        yield first, source.read_rows(name, first, min(end, height, first + step))


def _place(share: Tensor, source: WeightSource, name: str, rows: Tensor) -> None:
    """Fill a table with the rows of the source that its ids have there, and new ids with the mean of all of them."""
    local, begin = own_rows(share)
    wanted = rows[begin : begin + local.shape[0]].to(local.device)
    height, width = source.shapes[name]
    total = torch.zeros(width, dtype=torch.float64, device=local.device)
    for first, piece in pieces(source, name, 0, height):
        some = piece.to(local.device)
        here = (wanted >= first) & (wanted < first + len(some))
        local[here] = some[wanted[here] - first].to(local.dtype)
        total += some.double().sum(0)
    local[wanted < 0] = (total / height).to(local.dtype)
