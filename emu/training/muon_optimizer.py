"""Muon for the matrices between embedding and head, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

MOMENTUM = 0.95
"""Of Muon, as in its authors' and in torch's defaults."""


class MuonAdamW(Optimizer):
    """One optimizer over groups of which some are updated by torch's `Muon`, the others by `AdamW`.

    Muon (https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest orthogonal matrix. The update is scaled as
    in arXiv 2502.16982, section 2.2, to the size that AdamW's updates have, so that both share one learning rate and one weight decay.

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


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that are neither embedding nor head; both map between ids and features, where a row stands for itself."""
    outside = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "lm_head", None)
    outside += [head.weight] if isinstance(head, nn.Linear) else []
    left_out = {id(parameter) for parameter in outside}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in left_out]
