"""A new model whose weights are split over ranks before they exist: no rank ever holds more than its share and one tensor.

The model is built from tensors that hold no numbers while every random draw that building makes is written down. It is split on the meta
device, each rank gets memory for its share, and the draws are made in their order, each into one tensor of full size, of which a rank keeps
its rows. The generator moves as it does where a model is built in one piece, so that the weights are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
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
    with torch.device("meta"):  # on which transformers leaves its draws out
        model = EmuForCausalLM(config)
    split(model)
    model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    shares = dict(model.named_parameters())
    last = {places[id(draw.target)]: number for number, draw in enumerate(record.draws) if id(draw.target) in places}
    with torch.no_grad():
        for number, draw in enumerate(record.draws):
            whole = torch.empty(draw.target.shape, dtype=draw.target.dtype, device=device)
            draw.operation(whole, *draw.numbers)
            name = places.get(id(draw.target))
            if name is not None and last[name] == number:
                keep_share(shares[name], whole)
            del whole
        _set_constants(model, last)
    return model


def keep_share(share: nn.Parameter, whole: Tensor) -> None:
    """Copy the rows of a tensor that this rank keeps."""
    if not isinstance(share, DTensor):
        share.copy_(whole)
        return
    first, local = first_row(share), share.to_local()
    local.copy_(whole[first : first + local.shape[0]])


def first_row(share: DTensor) -> int:
    """The number of the first row that a rank keeps: rows are cut as `torch.chunk` cuts them."""
    mesh = share.device_mesh
    return min(mesh.get_local_rank() * -(-share.shape[0] // mesh.size()), share.shape[0])


def _set_constants(model: EmuForCausalLM, drawn: dict[str, int]) -> None:
    """What initialisation sets without drawing: gains of norms are 1, the padding's embedding is 0, angles are computed."""
    for name, share in model.named_parameters():
        if name not in drawn:
            (share.to_local() if isinstance(share, DTensor) else share).fill_(1.0)
    padding = model.config.pad_token_id
    if padding is not None:
        table = model.model.embed_tokens.weight
        local = table.to_local() if isinstance(table, DTensor) else table
        row = padding - (first_row(table) if isinstance(table, DTensor) else 0)
        if 0 <= row < local.shape[0]:
            local[row].zero_()
    rotary = model.model.rotary_emb
    computed = EmuRotaryEmbedding(model.config)
    for name, buffer in rotary.named_buffers():
        buffer.copy_(getattr(computed, name))
