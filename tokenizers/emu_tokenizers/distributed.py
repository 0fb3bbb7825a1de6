"""The processes that train one tokenizer together, asked at each use: Lightning makes its process group after the model."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def sum_over_ranks(tensor: Tensor) -> None:
    """Add up a tensor over the ranks, in place."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean over the ranks of a process group, with gradients; the tensor itself without one."""
    if num_ranks() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor) / num_ranks()
