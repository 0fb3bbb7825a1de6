"""The optimizers of a vision tokenizer and of its discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from emu_tokenizers.training.muon import ConvolutionMuon
from emu_tokenizers.training.parameter_rates import split_by_patterns
from emu_tokenizers.training.schedules import OptimizerOptions


def tokenizer_optimizer(
    model: nn.Module, options: OptimizerOptions, others: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW over all trained parameters, or Muon for matrices and convolutions and AdamW for the rest; at the peak of their rates.

    Args:
        model: the tokenizer.
        options: rates and decay.
        others: parameters that are trained with it.

    Raises:
        ValueError: a pattern of `options.groups` matches no parameter.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad] + list(others)
    settings: dict[str, Any] = _settings(options)
    if options.name == "muon":
        tables = [p for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()]
        matrix_lr = options.matrix_lr or options.lr
        return ConvolutionMuon(
            parameters, lr=options.lr, matrix_lr=matrix_lr, tables=tables, eps=options.eps, **settings
        )
    groups = [{"params": parameters, "weight_decay": options.weight_decay}]
    split = split_by_patterns(groups, dict(model.named_parameters()), options)
    return torch.optim.AdamW(split, lr=options.lr, eps=options.eps, **settings)


def discriminator_optimizer(discriminator: nn.Module, lr: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW with the tokenizer's decay and betas, at a rate of its own."""
    return torch.optim.AdamW(discriminator.parameters(), lr=lr, **_settings(options))


def _settings(options: OptimizerOptions) -> dict[str, Any]:
    return {"betas": (options.beta1, options.beta2), "weight_decay": options.weight_decay, "fused": True}
