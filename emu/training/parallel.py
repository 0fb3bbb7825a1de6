"""Sharded training: parameters, gradients and optimizer states split over ranks (FSDP2).

A recipe asks for it with Lightning's strategy:

    trainer:
      strategy:
        class_path: ModelParallelStrategy
        init_args: {data_parallel_size: 8, tensor_parallel_size: 1, save_distributed_checkpoint: false}

With `save_distributed_checkpoint: false` a checkpoint is one file, written whole or not at all, which any number of ranks can go on from.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning.fabric.strategies.model_parallel import _load_raw_module_state, _rekey_optimizer_state_if_needed
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from emu_tokenizers.weight_checks import check_weights


class Ranks(NamedTuple):
    """The processes that see different rows.

    Attributes:
        number: how many.
        group: theirs; None is all.
    """

    number: int = 1
    group: Any | None = None

    @classmethod
    def of(cls, module: LightningModule) -> Ranks:
        """Those that train a module."""
        options = getattr(module.trainer.strategy, "distributed_sampler_kwargs", None) or {}
        mesh = module.device_mesh
        return cls(options.get("num_replicas", 1), None if mesh is None else mesh["data_parallel"].get_group())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over them, as a new tensor where there are several."""
        if self.number > 1:
            tensor = self._own_copy(tensor)
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The largest of each entry over them, likewise."""
        if self.number > 1:
            tensor = self._own_copy(tensor)
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def _own_copy(self, tensor: Tensor) -> Tensor:
        """Where the group can reach it: sums to which nothing was added are still on the CPU."""
        return tensor.cuda() if dist.get_backend(self.group) == "nccl" and not tensor.is_cuda else tensor.clone()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a transformer over the data-parallel ranks, block by block.

    All ranks must hold the same weights, as they do when built from one seed. Embedding, head and last norm are gathered together.

    Args:
        model: an `EmuForCausalLM`.
        mesh: Lightning's, with axes "data_parallel" and "tensor_parallel".

    Raises:
        ValueError: tensor parallelism is asked for.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"tensor_parallel_size is {mesh['tensor_parallel'].size()}; only data parallelism is supported, set it to 1"
        )
    replicas = mesh["data_parallel"]
    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=replicas)
    fully_shard(model, mesh=replicas)


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are split over ranks."""
    return dist.is_initialized() and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The full weights of a sharded model on rank 0's CPU, nothing elsewhere; every rank must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def number_as_model(state: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimizer's state with its parameters numbered in the module's order.

    `Optimizer.state_dict` numbers them group by group, whereas Lightning's sharded strategies take the numbers for places in the module:
    with two groups they would give each parameter the moments of another one. Within a group both orders agree, so that an optimizer
    loads either.
    """
    place = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    ours = [place[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [ours[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {ours[number]: moments for number, moments in state["state"].items()}, "param_groups": groups}


def load_ours(strategy: ModelParallelStrategy) -> None:
    """Let a sharded strategy read the checkpoints that we write; it would go past its `CheckpointIO` and read a pickle."""
    strategy.load_checkpoint = partial(_load_checkpoint, strategy)  # type: ignore[method-assign]


def _load_checkpoint(strategy: ModelParallelStrategy, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """What the strategy's own method does with one whole file: weights and moments go to their shards, the rest is returned."""
    module, strict = strategy.model, strategy.lightning_module.strict_loading  # type: ignore[union-attr]
    assert module is not None
    checkpoint = strategy.checkpoint_io.load_checkpoint(strategy.broadcast(path))
    weights = checkpoint.pop("state_dict")
    check_weights(weights, dict(module.state_dict()), strict)
    _load_raw_module_state(weights, module, strict=strict)
    options = StateDictOptions(broadcast_from_rank0=True, full_state_dict=True, strict=strict)
    for optimizer, moments in zip(strategy.optimizers, checkpoint["optimizer_states"], strict=True):
        named = _rekey_optimizer_state_if_needed(moments, module)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=named, options=options)
    return checkpoint
