"""How a vision tokenizer starts when it is trained from nothing.

Convolutions are Kaiming-normal as in the Emu3 repository. Beyond that, everything starts close to the plain path: residual
branches are small, spatial norms are plain norms, and temporal layers pass their frames on (with a bias that keeps them in
the linear part of their SiLU). On small models that is worth about 4 dB after 300 steps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

Start = Literal["plain", "branch", "one", "zero", "pass"]
"""plain: Kaiming-normal. branch: a tenth of it. one, zero: the constant. pass: hands on the frames it sees."""

BRANCH_SCALE = 0.1
LINEAR_BIAS = 1.5


def start_as(conv: nn.Conv2d | nn.Conv3d, start: Start) -> None:
    """Note on a convolution how it starts."""
    conv.start = start  # type: ignore[assignment]


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Initialise one module's own parameters, leaving those that a checkpoint has filled."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        _init_convolution(module, getattr(module, "start", "plain"))
    elif isinstance(module, nn.Linear):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm3d):
        init.ones_(module.weight)
        init.zeros_(module.bias)


def _init_convolution(conv: nn.Conv2d | nn.Conv3d, start: Start) -> None:
    assert conv.bias is not None
    weight = torch.empty_like(conv.weight)
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    bound = 1 / math.sqrt(conv.weight[0].numel())
    bias = torch.empty_like(conv.bias).uniform_(-bound, bound)
    if start in ("branch", "pass"):
        weight *= BRANCH_SCALE
    if start in ("one", "zero"):
        weight.zero_()
        bias.fill_(1.0 if start == "one" else 0.0)
    if start == "pass":
        _add_pass(weight, conv.stride[0])
        bias.fill_(LINEAR_BIAS)
    init.copy_(conv.weight, weight)
    init.copy_(conv.bias, bias)


def _add_pass(weight: Tensor, taps: int) -> None:
    """Add to a kernel (C, C, k, 3, 3) the mean of the frames that its last taps see."""
    weight[:, :, -taps:, 1, 1] += torch.eye(len(weight), dtype=weight.dtype, device=weight.device)[..., None] / taps
