"""A new model whose weights are split over ranks before they exist: no rank ever holds more than its share and a few rows.

The model is built from tensors that hold no numbers while every random draw that building makes is written down. It is split on the meta
device, each rank gets memory for its share, and the draws are made in their order, some rows at a time, of which a rank keeps its own. The
generator moves as it does where a model is built in one piece, so that the weights are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.positions import EmuRotaryEmbedding

DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
"""What initialisation draws with."""
PIECE, LANES = 1 << 24, 16
"""Bytes that are drawn at a time on a CPU, and how many numbers its vector code works on together."""


@dataclass(frozen=True)
class Draw:
    """A random draw into a tensor.

    Attributes:
        operation: one of `DRAWS`.
        numbers: its other arguments, e.g. mean and standard deviation.
        target: the tensor, without numbers.
    """

    operation: Any
    numbers: tuple[Any, ...]
    target: Tensor


class RecordDraws(TorchDispatchMode):
    """A mode that writes down random draws.

    Attributes:
        draws: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            self.draws.append(Draw(func, tuple(args[1:]), args[0]))
        elif torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(
                f"{func} draws numbers, and is not one of the draws that are made again shard by shard"
            )
        return func(*args, **(kwargs or {}))


def build_sharded(config: EmuConfig, split: Callable[[EmuForCausalLM], None], device: torch.device) -> EmuForCausalLM:
    """A new model, split, with the weights that it would have in one piece.

    Args:
        config: of the model.
        split: is given the model on the meta device; leaves each parameter as this rank's share (FSDP2).
        device: of the shares.
    """
    with FakeTensorMode(), torch.device("cpu"), RecordDraws() as record:
        places = {id(weight): name for name, weight in EmuForCausalLM(config).named_parameters()}
    model = build_empty(config, split, device)
    shares = dict(model.named_parameters())
    last = {places[id(draw.target)]: number for number, draw in enumerate(record.draws) if id(draw.target) in places}
    with torch.no_grad():
        for number, draw in enumerate(record.draws):
            name = places.get(id(draw.target))
            kept = name is not None and last[name] == number
            for first, rows in made_again(draw, device):
                if kept:
                    keep_share(shares[name], rows, first)  # type: ignore[index]
        _set_constants(model, last)
    return model


def build_empty(config: EmuConfig, split: Callable[[EmuForCausalLM], None], device: torch.device) -> EmuForCausalLM:
    """A model, split, with memory for this rank's share of its weights and nothing in it; see `build_sharded`."""
    with torch.device("meta"):  # on which transformers leaves its draws out
        model = EmuForCausalLM(config)
    split(model)
    model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    computed = EmuRotaryEmbedding(config)
    for name, buffer in model.model.rotary_emb.named_buffers():
        buffer.copy_(getattr(computed, name))
    return model


def made_again(draw: Draw, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """The rows of a draw in order, each time with the number of the first of them.

    On a CPU a draw takes numbers off the generator one by one and works on 16 at a time, so that it can be made in pieces of a multiple of
    that; other devices spread numbers over the whole tensor, which is made at once.
    """
    shape, dtype = draw.target.shape, draw.target.dtype
    width = draw.target[0].numel() if draw.target.ndim else 1
    step = max(LANES, PIECE // (width * dtype.itemsize) // LANES * LANES)
    starts = list(range(0, shape[0], step)) if device.type == "cpu" and draw.target.ndim else []
    if starts and 0 < shape[0] % step * width < LANES:
        starts.pop()
    for place, first in enumerate(starts):
        end = starts[place + 1] if place + 1 < len(starts) else shape[0]
        rows = torch.empty((end - first, *shape[1:]), dtype=dtype, device=device)
        yield first, draw.operation(rows, *draw.numbers)
        del rows
    if not starts:
        yield 0, draw.operation(torch.empty(shape, dtype=dtype, device=device), *draw.numbers)


def keep_share(share: nn.Parameter, rows: Tensor, first: int) -> None:
    """Copy what this rank keeps of some rows of a tensor, of which the first has this number."""
    local, begin = own_rows(share)
    start, end = max(begin, first), min(begin + local.shape[0], first + rows.shape[0])
    if start < end:
        local[start - begin : end - begin].copy_(rows[start - first : end - first])


def own_rows(share: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this rank keeps, and the number of the first: they are cut as `torch.chunk` cuts them."""
    if not isinstance(share, DTensor):
        return share.detach(), 0
    mesh = share.device_mesh
    return share.to_local().detach(), min(mesh.get_local_rank() * -(-share.shape[0] // mesh.size()), share.shape[0])


def _set_constants(model: EmuForCausalLM, drawn: dict[str, int]) -> None:
    """What initialisation sets without drawing: gains of norms are 1, the padding's embedding is 0."""
    for name, share in model.named_parameters():
        if name not in drawn:
            own_rows(share)[0].fill_(1.0)
    padding = model.config.pad_token_id
    if padding is not None:
        local, first = own_rows(model.model.embed_tokens.weight)
        if 0 <= padding - first < local.shape[0]:
            local[padding - first].zero_()
