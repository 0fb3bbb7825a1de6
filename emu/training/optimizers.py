"""The optimizer of a transformer: which parameters decay, and which are the matrices that Muon takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from emu_tokenizers.training.muon import MuonAdamW
from emu_tokenizers.training.parameter_rates import split_by_patterns
from emu_tokenizers.training.schedules import OptimizerOptions, rate_function


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices decay; norms, biases and embeddings do not.

    A gain of zero is not a norm's neutral point, and the rows of an embedding table that a batch does not use receive no gradient: decay
    would shrink rare tokens merely for being rare. A head tied to the embedding is the embedding.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in tables]
    kept = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in trained if id(parameter) not in kept]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions, total_steps: int) -> tuple[Optimizer, LambdaLR]:
    """The optimizer and its schedule; AdamW in its fused implementation where parameters allow it (one kernel call a group, on CPU too)."""
    fused = all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in model.parameters()
    )
    groups = parameter_groups(model, options.weight_decay)
    if options.name == "muon":
        groups = split_matrices(groups, model, options.matrix_lr)
    groups = split_by_patterns(groups, dict(model.named_parameters()), options)
    betas = (options.beta1, options.beta2)
    optimizer: Optimizer
    if options.name == "muon":
        optimizer = MuonAdamW(groups, options.lr, betas, options.eps, fused)
    else:
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=betas, eps=options.eps, fused=fused)
    return optimizer, LambdaLR(optimizer, rate_function(options, total_steps))


def split_matrices(
    groups: list[dict[str, Any]], model: nn.Module, matrix_lr: float | None = None
) -> list[dict[str, Any]]:
    """The groups, with the matrices of hidden layers in groups of their own ("matrices" is True), at their own rate if one is given."""
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in hidden) == matrices], "matrices": matrices}
        for group in groups
        for matrices in (True, False)
    ]
    for part in parts:
        if part["matrices"] and matrix_lr is not None:
            part["lr"] = matrix_lr
    return [part for part in parts if part["params"]]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that are neither embedding nor head; both map between ids and features, where a row stands for itself."""
    outside = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "lm_head", None)
    outside += [head.weight] if isinstance(head, nn.Linear) else []
    left_out = {id(parameter) for parameter in outside}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in left_out]
