"""Muon for the matrices inside a model and AdamW for all its other parameters, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest orthogonal matrix. Updates are scaled
as in arXiv 2502.16982, section 2.2, to the size of AdamW's, so that one learning rate serves both. `MuonAdamW` is torch's own `Muon`,
which takes two-dimensional parameters one by one; `ConvolutionMuon` takes a convolution (C_out, C_in, ...) as the matrix
(C_out, C_in * ...), and the matrices of one shape as a batch, which is faster where they are many and small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, and of how many rounds, as in its authors' code."""
ROUNDS = 5
UPDATE_SIZE = 0.2
"""Root mean square of an update in units of the learning rate: about that of AdamW."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (B, m, n) with their singular values brought close to 1, in float32."""
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
        matrix_lr: learning rate of Muon.
        betas: of AdamW.
        weight_decay: of both.
        eps: of AdamW.
        fused: whether AdamW uses its fused implementation.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        matrix_lr: float,
        tables: Iterable[nn.Parameter] = (),
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        fused: bool = True,
    ) -> None:
        rows = {id(table) for table in tables}
        chosen: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            chosen[parameter.ndim in (2, 4) and id(parameter) not in rows].append(parameter)
        matrices = {"params": chosen[True], "lr": matrix_lr, "weight_decay": weight_decay}
        self._adamw = AdamW(chosen[False], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        super().__init__([*self._adamw.param_groups, matrices], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient; returns what the closure returns."""
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
        """Take a step of matrices of one shape."""
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


class MuonAdamW(Optimizer):
    """One optimizer over groups of which some are updated by torch's `Muon`, the others by `AdamW`.

    Args:
        groups: parameter groups, each with an entry "matrices" that says whether Muon updates it; Muon takes two-dimensional parameters.
        lr: learning rate.
        betas: of AdamW.
        eps: of AdamW.
        fused: whether AdamW uses its fused implementation.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> None:
        muon = [group for group in groups if group["matrices"]]
        adamw = [group for group in groups if not group["matrices"]]
        self._parts: list[tuple[bool, Optimizer]] = []
        if muon:
            self._parts += [(True, Muon(muon, lr=lr, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))]
        if adamw:
            self._parts += [(False, AdamW(adamw, lr=lr, betas=betas, eps=eps, fused=fused))]
        super().__init__([group for _, part in self._parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for matrices, part in self._parts:
            # Groups and state are those of this optimizer, which loading a checkpoint replaces.
            part.param_groups = [group for group in self.param_groups if group["matrices"] == matrices]
            part.state = self.state
            part.step()
        return loss
