"""Sums that make up a row of the training curves, kept on the device and read only when a row is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emu.model import EmuConfig
from emu.model.positions import segment_positions
from emu.packing import Packed
from emu.training.flops import step_flops
from emu.training.parallel import Ranks
from emu.vocabulary import Vocabulary


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class PartSums:
    """Weighted means of token losses over groups of tokens, e.g. one group a source.

    Args:
        names: of the groups, in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums = torch.zeros(2, len(self.names), dtype=torch.float64)

    def add(self, losses: Tensor, weights: Tensor, groups: Tensor) -> None:
        """Add tokens.

        Args:
            losses: (n,) loss of each token.
            weights: (n,) its weight.
            groups: (n,) int64 number of its group; negative numbers are left out.
        """
        inside = groups >= 0
        # masked tokens go to group 0 with weight zero: no data-dependent shapes, no wait for the device
        dtype = exact_dtype(losses.device)
        weights = weights.detach().to(dtype) * inside
        groups = groups.clamp(min=0)
        self.sums = self.sums.to(losses.device, dtype)
        self.sums[0].index_add_(0, groups, losses.detach().to(dtype) * weights)
        self.sums[1].index_add_(0, groups, weights)

    def means(self) -> dict[str, float]:
        """Mean loss of each group that has any weight."""
        totals, weights = self.sums.tolist()
        return {
            name: total / weight for name, total, weight in zip(self.names, totals, weights, strict=True) if weight > 0
        }

    def reset(self) -> None:
        """Forget all tokens."""
        self.sums.zero_()


class TokenKinds:
    """Which part of the vocabulary an id belongs to: text, controls, or one of its codebooks.

    Args:
        vocabulary: the table of ids.

    Attributes:
        names: "text", "control", then the codebooks.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.names = ("text", "control", *vocabulary.ranges)
        spans = [(first, count, number + 2) for number, (first, count) in enumerate(vocabulary.ranges.values())]
        spans += [(index, 1, 1) for index in vocabulary.controls.values()]
        spans += [(*vocabulary.text, 0)]
        table = torch.full((vocabulary.size,), -1, dtype=torch.int64)
        for first, count, number in spans:
            table[first : first + count] = number
        self._table = table

    def __call__(self, ids: Tensor) -> Tensor:
        """Number of the part of each id, of the same shape; -1 for ids without an owner and for negative ids."""
        self._table = self._table.to(ids.device)
        return torch.where(ids >= 0, self._table[ids.clamp(min=0)], -1)


class StepMeter:
    """What happened since the last row of the curves: losses, gradient norms, tokens.

    Args:
        kinds: names of the parts of the vocabulary.
        sources: names of the sources.
    """

    def __init__(self, kinds: Sequence[str], sources: Sequence[str]) -> None:
        self.kinds = PartSums(kinds)
        self.sources = PartSums(sources)
        # sums of step losses (this rank's share), of tokens, of positions of rows, of gradient norms
        self.counts = torch.zeros(4, dtype=torch.float64)
        # sums of predicted tokens, and of pairs of tokens of which one sees the other
        self.work = torch.zeros(2, dtype=torch.float64)
        self.num_steps = 0
        self.metrics: dict[str, Tensor] = {}  # (2,) sums of values by share, and of shares

    def add_batch(self, loss_share: Tensor, batch: Packed) -> None:
        """Add a batch.

        Args:
            loss_share: () what this rank's batch contributes to the global loss of the optimizer step.
            batch: its rows, tensors (R, S).
        """
        segment_ids = batch.segment_ids
        self.counts = self.counts.to(loss_share.device, exact_dtype(loss_share.device))
        self.counts[0] += loss_share.detach()
        self.counts[1] += (segment_ids > 0).sum()
        self.counts[2] += segment_ids.numel()
        self.work = self.work.to(self.counts)
        self.work[0] += (batch.loss_weights > 0).sum()
        self.work[1] += ((segment_positions(segment_ids) + 1) * (segment_ids > 0)).sum()

    def add_metrics(self, metrics: Mapping[str, Tensor], share: Tensor) -> None:
        """Add an objective's values of a batch, each () and NaN for none, and the batch's share () of its step."""
        dtype = exact_dtype(share.device)
        for name, value in metrics.items():
            found, weight = value.detach().to(share.device, dtype), share.to(dtype)
            both = torch.where(found.isnan(), 0.0, torch.stack([found * weight, weight]))  # NaN says nothing
            self.metrics[name] = self.metrics[name].to(both) + both if name in self.metrics else both

    def add_step(self, gradient_norm: float) -> None:
        """Add an optimizer step."""
        self.counts[3] += gradient_norm
        self.num_steps += 1

    def gather(self, ranks: Ranks) -> None:
        """Sum everything over the ranks; afterwards all hold the same."""
        self.counts[:3] = ranks.sum(self.counts[:3])  # the norm of a gradient is the same on all
        self.work = ranks.sum(self.work)
        for part in (self.kinds, self.sources):
            part.sums = ranks.sum(part.sums)
        self.metrics = {name: ranks.sum(self.metrics[name]) for name in sorted(self.metrics)}

    def row(self) -> dict[str, float]:
        """Since the last reset: mean loss, gradient norm, how full the rows were, and the mean losses of kinds of tokens and of sources."""
        loss, tokens, positions, norm = (self.counts / max(1, self.num_steps)).tolist()
        row = {"loss": loss, "gradient_norm": norm, "row_fill": tokens / max(1.0, positions)}
        row |= {f"loss/{name}": mean for name, mean in self.kinds.means().items()}
        row |= {name: float(sums[0] / sums[1]) for name, sums in self.metrics.items() if sums[1] > 0}
        return row | {f"source_loss/{name}": mean for name, mean in self.sources.means().items()}

    def flops(self, config: EmuConfig, adapters: int | None = None) -> float:
        """Operations that the steps since the last reset needed, see `step_flops`."""
        predicted, pairs = self.work.tolist()
        return step_flops(config, self.tokens, predicted, pairs, adapters)

    @property
    def tokens(self) -> float:
        """Number of tokens since the last reset."""
        return float(self.counts[1])

    def reset(self) -> None:
        """Start the next row."""
        self.counts.zero_()
        self.work.zero_()
        self.kinds.reset()
        self.sources.reset()
        self.num_steps = 0
        self.metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """This rank's sums, for a checkpoint in the middle of a row; see `over_ranks`."""
        return {
            "counts": self.counts.cpu(),
            "work": self.work.cpu(),
            "num_steps": self.num_steps,
            "kinds": self.kinds.sums.cpu(),
            "sources": self.sources.sums.cpu(),
            "metrics": {name: sums.cpu() for name, sums in self.metrics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a row."""
        self.counts, self.num_steps = state["counts"].clone(), int(state["num_steps"])
        self.work = state["work"].clone() if "work" in state else torch.zeros(2, dtype=torch.float64)
        self.kinds.sums, self.sources.sums = state["kinds"].clone(), state["sources"].clone()
        self.metrics = {name: sums.clone() for name, sums in state.get("metrics", {}).items()}

    def leave_to_others(self) -> None:
        """Forget what is summed over ranks, where another rank goes on with all of it."""
        for sums in (self.counts[:3], self.work, self.kinds.sums, self.sources.sums, *self.metrics.values()):
            sums.zero_()


def over_ranks(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """The state of a meter with the sums of all ranks, which any number of them goes on from; all must call this."""
    summed = {name: ranks.sum(state[name]).cpu() for name in ("work", "kinds", "sources")}
    counts = torch.cat([ranks.sum(state["counts"][:3]).cpu(), state["counts"][3:]])
    metrics = {name: ranks.sum(state["metrics"][name]).cpu() for name in sorted(state["metrics"])}
    return {**state, **summed, "counts": counts, "metrics": metrics}
