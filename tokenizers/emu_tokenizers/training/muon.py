"""Muon for convolutions and matrices, AdamW for biases and norms, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest orthogonal matrix; a
convolution [C_out, C_in, ...] is the matrix [C_out, C_in * ...]. Updates are scaled as in arXiv 2502.16982, section 2.2, to
the size of AdamW's, so that one learning rate serves both. torch's own `Muon` takes two-dimensional parameters only and goes
through them one by one; here the matrices of a shape go through as a batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, and of how many rounds, as in its authors' code."""
ROUNDS = 5
UPDATE_SIZE = 0.2
"""Root mean square of an update in units of the learning rate: about that of AdamW."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [B, m, n] with their singular values brought close to 1, in float32."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        product = x @ x.mT
        x = a * x + (b * product + c * product @ product) @ x
    return x if wide else x.mT


class ConvolutionMuon(Optimizer):
    """Muon for matrices and two-dimensional convolutions, AdamW for all other parameters.

    Three-dimensional convolutions stay with AdamW: the temporal layers work on few channels, through which all that a
    picture holds must pass, and lose several dB under Muon's full-rank steps. So do tables, whose rows stand for themselves:
    orthogonal steps move the codes that no vector has chosen as far as those that some have.

    Args:
        parameters: of a model.
        tables: those of them that are tables of codes.
        lr: learning rate of AdamW.
        muon_lr: learning rate of Muon.
        betas: of AdamW.
        weight_decay: of both.
        fused: whether AdamW uses its fused implementation.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        muon_lr: float,
        tables: Iterable[nn.Parameter] = (),
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        fused: bool = True,
    ) -> None:
        rows = {id(table) for table in tables}
        chosen: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            chosen[parameter.ndim in (2, 4) and id(parameter) not in rows].append(parameter)
        matrices = {"params": chosen[True], "lr": muon_lr, "weight_decay": weight_decay}
        self._adamw = AdamW(chosen[False], lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        super().__init__([*self._adamw.param_groups, matrices], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates all parameters that have a gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others, matrices = self.param_groups
        # Groups and state are those of this optimizer, which loading a checkpoint replaces.
        self._adamw.param_groups, self._adamw.state = [others], self.state
        self._adamw.step()
        shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                shapes.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        for same in shapes.values():
            self._step_matrices(same, matrices["lr"], matrices["weight_decay"])
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        """One step of matrices of one shape."""
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            directions.append(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))
        updates = orthogonal(torch.stack(directions))
        scale = UPDATE_SIZE * max(updates.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.view_as(parameter).to(parameter.dtype), alpha=-lr * scale)
