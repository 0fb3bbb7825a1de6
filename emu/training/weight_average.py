"""A moving average of the weights, which validates better than the last weights do while the rate is high."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after each step, of the weights that learn; the first step's weights begin it.

    It is as the weights are: in float32 at least, on their device, split over ranks where they are.

    Args:
        model: whose weights are averaged.
        decay: see above; in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._model = decay, model
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        wide = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in self._weights.items()}
        self._average = {name: weight.detach().to(wide[name], copy=True) for name, weight in self._weights.items()}
        self._steps = 0
        self._trained: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average."""
        for name, weight in self._weights.items():
            average = self._average[name] = self._average[name].to(weight.device)  # a model is moved after it is built
            average.lerp_(weight.detach().to(average.dtype), 1 - self.decay if self._steps else 1.0)
        self._steps += 1

    @torch.no_grad()
    def use(self) -> None:
        """Put the average in the place of the weights; nothing where it is there already."""
        if self._trained is None:
            self._trained = {name: weight.detach().clone() for name, weight in self._weights.items()}
            self._put(self._average)

    @torch.no_grad()
    def put_back(self) -> bool:
        """Put the weights that are trained back in their place.

        Returns:
            Whether the average was there.
        """
        trained, self._trained = self._trained, None
        if trained is not None:
            self._put(trained)
        return trained is not None

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered for a pass without gradients would be used again
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """The average, whole on every rank, for a checkpoint; all ranks must call this."""
        return {"steps": self._steps, "weights": {name: _whole(average) for name, average in self._average.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on with that average."""
        self._steps = int(state["steps"])  # type: ignore[call-overload]
        weights: Mapping[str, Tensor] = state["weights"]  # type: ignore[assignment]
        for name, average in self._average.items():
            whole = weights[name].to(average.device)
            if isinstance(average, DTensor):
                whole = distribute_tensor(whole, average.device_mesh, average.placements)
            average.copy_(whole)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
