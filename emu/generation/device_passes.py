"""Passes whose kernels do not depend on how long the rows are, so that a CUDA graph repeats them.

A pass over few rows starts hundreds of small kernels, and the host takes longer to start them than a GPU to run them. Here the lengths of
the rows are numbers in the GPU's memory and everything else has a fixed size: the first passes of a size run as they are, then one is
recorded, and from there on the host starts a pass with one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import emu_kernels
from emu.generation.linear import LinearBackend
from emu.model import EmuForCausalLM, StaticCache
from emu.model.attention import DeviceStep
from emu.model.norm import RMSNorm

RECORD_FROM = 3
"""Pass of a size from which it is recorded: the first one compiles kernels, and recording takes as long as some passes."""
ROWS_STEP = 8
"""Recorded passes have 1, 2, 4 or a multiple of so many rows: on a GPU a row more costs next to nothing, a recording some passes."""

FUSED_TOKENS = 16
"""Tokens of a pass up to which its products are fused, see `fuses`."""


@dataclass
class _Size:
    """Passes of so many rows and tokens: what they read, what they write, and the graph once there is one."""

    ids: Tensor  # (R, m) int64
    places: Tensor  # (2, R) int64: where rows begin, and where they end
    runs: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    hidden: Tensor | None = None


class Passes:
    """Runs the next tokens of all rows of a static cache, on a GPU from recordings.

    Args:
        model: in eval mode while it runs.
        cache: whose rows advance.
        by_row: see `EmuForCausalLM.forward_block`; recorded passes compute each row by itself anyway.

    Attributes:
        records: whether passes of this model are recorded.
    """

    def __init__(self, model: EmuForCausalLM, cache: StaticCache, *, by_row: bool) -> None:
        self._model, self._cache, self._by_row = model, cache, by_row
        self.records = can_record(model)
        self._recorded: RecordedPasses | None = None

    def run(self, ids: Tensor, linear: LinearBackend) -> Tensor:
        """Feed the next tokens, (rows, m), as `EmuForCausalLM.forward_block` does.

        Args:
            linear: how weights are multiplied; another object when they have changed.

        Returns:
            (rows, m, hidden), valid until the next pass; anything where a row has fewer tokens.
        """
        if not (self.records and self._cache.has_room_on_device(ids.shape[1])):
            return self._model.forward_block(ids, self._cache, linear, by_row=self._by_row)
        if self._recorded is None or self._recorded.linear is not linear:
            self._recorded = RecordedPasses(self._model, linear, self._cache)
        return self._recorded.run(ids)


class RecordedPasses:
    """Passes over the rows of one static cache, with one way of multiplying; see `Passes`."""

    def __init__(self, model: EmuForCausalLM, linear: LinearBackend, cache: StaticCache) -> None:
        self.linear = linear
        self._model, self._cache = model, cache
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._memory = cache.memory[0]

    def run(self, ids: Tensor) -> Tensor:
        """See `Passes.run`."""
        cache = self._cache
        if self._memory is not cache.memory[0]:
            self._sizes, self._memory = {}, cache.memory[0]
        rows, tokens = ids.shape
        size = self._size(rows_of(rows, self._memory.shape[1]), tokens)
        places = cache.begin_on_device(tokens, len(size.ids))
        size.places.copy_(torch.tensor(places), non_blocking=True)
        size.ids[:rows] = ids
        hidden = self._pass(size)
        cache.commit()
        return hidden[:rows]

    def _size(self, rows: int, tokens: int) -> _Size:
        if (rows, tokens) not in self._sizes:
            device = self._memory.device
            ids = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
            self._sizes[rows, tokens] = _Size(ids, torch.zeros(2, rows, dtype=torch.int64, device=device))
        return self._sizes[rows, tokens]

    def _pass(self, size: _Size) -> Tensor:
        size.runs += 1
        if size.graph is None:
            if self._memory.device.type != "cuda" or size.runs < RECORD_FROM:
                return decode(self._model, self.linear, self._cache, size.ids, size.places)
            size.graph = torch.cuda.CUDAGraph()
            # Of this thread alone: others may use the GPU meanwhile.
            with torch.cuda.graph(size.graph, capture_error_mode="thread_local"):
                size.hidden = decode(self._model, self.linear, self._cache, size.ids, size.places)
        size.graph.replay()
        assert size.hidden is not None
        return size.hidden


def decode(model: EmuForCausalLM, linear: LinearBackend, cache: StaticCache, ids: Tensor, places: Tensor) -> Tensor:
    """One pass: a function of tensors of fixed sizes, without a branch on what they hold and without a wait.

    Args:
        ids: (R, m) int64.
        places: (2, R) int64, where rows begin and where they end so far.

    Returns:
        (R, m, hidden).
    """
    begin, first = places
    slots = first[:, None] + torch.arange(ids.shape[1], device=ids.device)
    positions = (slots - begin[:, None]).clamp_min(0)
    cos, sin = cache.angles(model.model.rotary_emb)
    attend = DeviceStep(cache, begin, slots, fused=fuses(model, linear, ids.numel()))
    return model.model.run(model.model.embed_tokens(ids), (cos[positions], sin[positions]), attend, linear)


def fuses(model: EmuForCausalLM, linear: LinearBackend, tokens: int) -> bool:
    """Whether the blocks of a pass over so many tokens fuse their products with what is around them.

    The products of fused blocks take as long for one row as for FUSED_TOKENS: what reading the weights takes. For more rows cuBLAS is
    faster, but how it sums depends on their number; where rows shall not depend on each other, its tiles read the weights more often.
    """
    return (tokens <= FUSED_TOKENS or linear.by_row) and all(block.is_plain() for block in model.model.layers)


def rows_of(rows: int, most: int) -> int:
    """Rows of a recorded pass for so many rows in use, of `most` that the memory has."""
    if rows <= ROWS_STEP:
        return min(1 << (rows - 1).bit_length(), most)
    return min(-(-rows // ROWS_STEP) * ROWS_STEP, most)


def can_record(model: EmuForCausalLM) -> bool:
    """Whether passes of a model can be recorded: on one GPU with kernels, and angles that do not depend on the length of a sequence."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or model.device.type != "cuda" or model.model.rotary_emb.depends_on_length:
        return False
    # One launch norms and turns queries and keys, from the weights of the norms: a module of another kind would be passed over.
    attentions = [block.self_attn for block in model.model.layers]
    if any(type(norm) not in (RMSNorm, nn.Identity) for each in attentions for norm in (each.q_norm, each.k_norm)):
        return False
    return emu_kernels.choices(model.device)["decode_attention"][0] == "triton"
