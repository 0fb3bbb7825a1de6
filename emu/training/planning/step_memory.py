"""Memory of a training step, tensor by tensor: the step is computed on tensors that hold no numbers.

The model, the loss, clipping and the optimizer are those of the run, so that whatever they keep or make for a moment is counted. What a
device adds is not: its context (about half a GiB on CUDA), rounding by its allocator, and the workspace inside kernels. A GPU has kernels
of its own for norms, rotation and attention, which keep a little less than those that are counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.loss import next_token_loss
from emu.training.live_bytes import LiveBytes, default_dtype, give_memory, num_bytes_of
from emu.training.optimizers import build_optimizer
from emu_tokenizers.training.schedules import OptimizerOptions

STEPS = 2
"""Steps that are computed: from the second one on the optimizer has its moments from the start."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step on one process that holds the whole model.

    Attributes:
        weights, gradients, optimizer: of all parameters, once.
        activations: the most that lives beside them in forward and backward pass, gradients that are just being made and the loss among it.
        loss: of those, the logits of a chunk of tokens and what else the head and the loss make beside the blocks.
        peak: all tensors at the worst moment. The parts need not be at their largest at the same time.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    peak: int


@dataclass(frozen=True)
class StepOptions:
    """What of a recipe decides a step's memory, beside the model.

    Attributes:
        rows, row_length: of a batch on one process.
        optimizer: as in the recipe.
        weights: dtype of the weights.
        mixed: dtype of products, where that is another one (autocast); None for that of the weights.
        prepare: is given the model before the first step, e.g. to let its blocks keep less for the backward pass.
    """

    rows: int
    row_length: int
    optimizer: OptimizerOptions = OptimizerOptions()
    weights: torch.dtype = torch.float32
    mixed: torch.dtype | None = None
    prepare: Callable[[EmuForCausalLM], None] | None = None

    @property
    def tokens(self) -> int:
        """Positions of a batch on one process."""
        return self.rows * self.row_length


def step_memory(config: EmuConfig, options: StepOptions) -> StepMemory:
    """The memory of a step, of the whole model on one process."""
    with FakeTensorMode():
        model = _model(config, options)
        weights = sum(map(num_bytes_of, model.parameters()))
        optimizer, _ = build_optimizer(model, options.optimizer, 10)
        with LiveBytes() as live:
            live.now = live.peak = weights
            for step in range(STEPS):
                live.peak = live.now if step == STEPS - 1 else live.peak
                optimizer.zero_grad()
                _pass(model, options)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            moments = sum(
                num_bytes_of(value) for state in _states(optimizer) for value in state.values() if _is_large(value)
            )
            peak = live.peak
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(map(num_bytes_of, trained))
    activations, loss = pass_memory(config, options), loss_memory(config, options)
    return StepMemory(weights, gradients, moments, activations, loss, peak)


def pass_memory(config: EmuConfig, options: StepOptions) -> int:
    """Bytes that live beside weights, gradients and moments in forward and backward pass at the worst moment.

    Each gradient counts until it is complete, as where it is handed to another process or added to one that is there.
    """
    with FakeTensorMode():
        model = _model(config, options)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_forget)
        with LiveBytes() as live:
            _pass(model, options)
        return live.peak


def loss_memory(config: EmuConfig, options: StepOptions) -> int:
    """Bytes that head and loss make of hidden states that are there, at the worst moment."""
    with FakeTensorMode():
        head = torch.zeros(config.vocab_size, config.hidden_size, dtype=options.weights, requires_grad=True)
        head.register_post_accumulate_grad_hook(_forget)
        dtype = options.mixed or options.weights
        hidden = torch.zeros(options.rows, options.row_length, config.hidden_size, dtype=dtype, requires_grad=True)
        ids = torch.zeros(options.rows, options.row_length, dtype=torch.int64)
        with LiveBytes() as live, _products(options):
            next_token_loss(hidden, head, ids, weights=torch.ones(ids.shape), z_loss=config.z_loss).backward()
        return live.peak


def _model(config: EmuConfig, options: StepOptions) -> EmuForCausalLM:
    """The model, in the fake mode that is on."""
    with torch.device("meta"), default_dtype(options.weights):
        model = EmuForCausalLM(EmuConfig.from_dict(config.to_dict()))
    give_memory(model)
    if options.prepare is not None:
        options.prepare(model)
    return model.train()


def _pass(model: EmuForCausalLM, options: StepOptions) -> None:
    """Forward and backward pass of a batch without padding."""
    ids = torch.zeros(options.rows, options.row_length, dtype=torch.int64)
    weights = torch.ones(ids.shape)
    with _products(options):
        out = model(ids, labels=ids, loss_weights=weights, segment_ids=torch.ones_like(ids))
    out.loss.backward()


def _products(options: StepOptions) -> Any:
    return torch.autocast("cpu", options.mixed or torch.bfloat16, enabled=options.mixed is not None)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _states(optimizer: Any) -> list[dict[str, Any]]:
    return list(optimizer.state.values())


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
