"""How the blocks of a transformer are run in training: what of their activations is kept, and whether they are compiled."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from emu.model import EmuForCausalLM

Checkpointing = Literal["none", "selective", "full"]
"""What is kept of a block for the backward pass: everything; the results of its products and of its attention, which are what costs
time to compute again (as torchtitan's selective checkpointing, arXiv 2410.06511); or what enters it alone."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product", "emu_kernels::attention")
"""What the names of operations begin with whose results "selective" keeps."""


def checkpoint_blocks(model: EmuForCausalLM, kept: Checkpointing) -> None:
    """Choose what the blocks of a model keep for the backward pass; dropout is drawn the same when they are computed again."""
    options: dict[str, Any] = {"use_reentrant": False}
    if kept == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = kept != "none"
            module._gradient_checkpointing_func = partial(checkpoint, **options)  # type: ignore[assignment]


def compile_blocks(model: EmuForCausalLM, **options: Any) -> None:
    """Compile the blocks of a model, each without a break in its graph, once for all blocks and all numbers of rows and tokens.

    Names of weights stay, and hooks, as those that gather sharded weights, run around what is compiled. Batches of one row are compiled
    apart, as torch does with whatever there is one of; so are training and evaluation.

    Args:
        model: the transformer.
        options: of `torch.compile`.
    """
    for block in model.model.layers:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, **options)


def _keep_products(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    keep = operation.name().startswith(PRODUCTS)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
