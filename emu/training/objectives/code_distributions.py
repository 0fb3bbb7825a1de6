"""Log-probabilities of the distribution that codes were drawn from, as a differentiable function of the model's weights.

The engine draws a code from logits that were guided, divided by the temperature and cut to a set of candidates. Public trainers of image
tokens draw in this way and score with the conditional logits alone (T2I-R1, STAGE), so that their gradient is that of another distribution.
Here both sides of the guidance, the temperature and the set are part of the function. The set is that of the draw: it is computed once,
taken from the weights that drew, and held fixed afterwards, as the support of a distribution has no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emu.generation.sampling import Sampling
from emu.layouts import BlockTemplate
from emu.model import EmuForCausalLM
from emu.training.objectives.frozen_reference import without_dropout


@dataclass(frozen=True)
class DrawnBlocks:
    """Blocks of one modality and grid that were drawn: N sequences with T codes each, and K candidates at each code.

    Attributes:
        prompts: N times (n,) int64, each ending in the header of its block.
        negatives: what each was guided against, likewise; not read without guidance.
        codes: (N, *shape) int64 as the engine gave them.
        template: the engine's plan of a block.
        sampling: how codes were drawn.
        modality: of the blocks.
        kept: (N, T, K) bool candidates that the draw could have taken; None until they are recorded.
    """

    prompts: Sequence[Tensor]
    negatives: Sequence[Tensor]
    codes: Tensor
    template: BlockTemplate
    sampling: Sampling
    modality: str = "image"
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, some: Sequence[int] | slice) -> DrawnBlocks:
        """The blocks of some numbers."""
        numbers = list(range(len(self))[some]) if isinstance(some, slice) else list(some)
        return replace(
            self,
            prompts=[self.prompts[number] for number in numbers],
            negatives=[self.negatives[number] for number in numbers] if self.negatives else [],
            codes=self.codes[numbers],
            kept=None if self.kept is None else self.kept[numbers],
        )

    def split(self, size: int) -> Iterator[DrawnBlocks]:
        """The blocks in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def drawn(self) -> Tensor:
        """(N, T) int64 number of each code among its candidates."""
        return self.codes.flatten(1)


class BlockScores(NamedTuple):
    """What a model makes of drawn blocks.

    Attributes:
        open: (N, T, K) log-probabilities after guidance and temperature and before candidates are left out; -inf beyond a codebook.
        contrast: (N, T) log-probability of each code given the prompt minus that given the negative prompt; zeros without guidance.
    """

    open: Tensor
    contrast: Tensor


def block_scores(model: EmuForCausalLM, blocks: DrawnBlocks, *, recompute: bool = False) -> BlockScores:
    """The distribution of each code given what was drawn before it.

    Args:
        model: run in the mode that it is in; use `without_dropout` around it.
        blocks: on the CPU.
        recompute: keep no activations, and compute them again in the backward pass; without dropout, then as now.

    Returns:
        Differentiable in the model's weights; float32, float64 for a float64 model.
    """
    if recompute and torch.is_grad_enabled():
        return BlockScores(*checkpoint(_quiet_scores, model, blocks, use_reentrant=False))
    return BlockScores(*_scores(model, blocks))


def _quiet_scores(model: EmuForCausalLM, blocks: DrawnBlocks) -> tuple[Tensor, Tensor]:
    with without_dropout(model):
        return _scores(model, blocks)


def _scores(model: EmuForCausalLM, blocks: DrawnBlocks) -> tuple[Tensor, Tensor]:
    sampling, count = blocks.sampling, len(blocks)
    sides = [*blocks.prompts, *blocks.negatives] if sampling.guided else list(blocks.prompts)
    logits = code_logits(model, sides, blocks.codes.repeat(len(sides) // count, *[1] * (blocks.codes.ndim - 1)), blocks)
    scores, contrast = logits[:count], logits.new_zeros(logits.shape[0] // (len(sides) // count), logits.shape[1])
    if sampling.guided:
        without = logits[count:]
        scores = torch.where(without.isinf(), without, without + sampling.guidance_scale * (scores - without))
        apart = [log_probs_of(side.log_softmax(-1), blocks.drawn) for side in (logits[:count], without)]
        contrast = (apart[0] - apart[1]).detach()
    return (scores / sampling.temperature).log_softmax(-1), contrast


def code_logits(model: EmuForCausalLM, prompts: Sequence[Tensor], codes: Tensor, blocks: DrawnBlocks) -> Tensor:
    """(N, T, K) logits of the candidates of each code after prompts and codes (N, *shape); -inf beyond a codebook."""
    template, device = blocks.template, model.device
    free = template.free.nonzero()[:, 0]
    # Nothing after the place before the last code is asked for.
    fed = torch.stack([template.fill(grid) for grid in codes.cpu()])[:, : int(free[-1])]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max()) + fed.shape[1]
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) + fed.shape[1]] = torch.cat([prompt, fed[row]])
    exists = torch.arange(width) < (lengths + fed.shape[1])[:, None]
    out = model(input_ids=ids.to(device), segment_ids=exists.long().to(device), return_hidden=True)
    places = (lengths[:, None] + free - 1).to(device)  # the token before a code predicts it
    hidden = out.hidden_states[-1].gather(1, places[..., None].expand(-1, -1, out.hidden_states[-1].shape[-1]))
    return _candidates(model, hidden, template)


def _candidates(model: EmuForCausalLM, hidden: Tensor, template: BlockTemplate) -> Tensor:
    """(N, T, K) logits of hidden states (N, T, hidden) of the places before the codes of a block."""
    first, count = (some[template.free].tolist() for some in (template.first, template.count))
    ranges = list(dict.fromkeys(zip(first, count, strict=True)))
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    parts = [
        F.linear(hidden, model.lm_head.weight[start : start + number].to(hidden.dtype)).to(dtype)
        for start, number in ranges
    ]
    if len(ranges) == 1:
        return parts[0]
    most = max(number for _, number in ranges)
    padded = torch.stack([F.pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in parts])
    owner = torch.tensor([ranges.index(span) for span in zip(first, count, strict=True)], device=hidden.device)
    return padded[owner, :, torch.arange(len(owner), device=hidden.device)].transpose(0, 1)


def kept_candidates(scores: Tensor, blocks: DrawnBlocks) -> Tensor:
    """(N, T, K) bool candidates that top-k and top-p leave, as the sampler cuts them (`emu_kernels.guided_sample`).

    The codes that were drawn are among them: the engine multiplies in another order, so that a candidate at the border may lie on its
    other side here.

    Args:
        scores: (N, T, K) `BlockScores.open` of the weights that drew.
    """
    sampling, scores = blocks.sampling, scores.detach()
    kept = torch.isfinite(scores)
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        kept &= scores >= scores.topk(sampling.top_k).values[..., -1:]
    if sampling.top_p < 1:
        odds = torch.where(kept, scores, -torch.inf).softmax(-1)
        ranked = odds.sort(descending=True).values
        # A candidate stays while the mass before it falls short; those that tie with the last one stay with it.
        number = (ranked.cumsum(-1) - ranked < sampling.top_p).sum(-1, keepdim=True)
        kept &= odds >= ranked.gather(-1, number - 1)
    return kept.scatter(-1, blocks.drawn.to(scores.device)[..., None], True)


def drawn_log_probs(scores: Tensor, blocks: DrawnBlocks) -> Tensor:
    """(N, T) log-probability with which each code was drawn.

    Args:
        scores: (N, T, K) `BlockScores.open`.
        blocks: with their recorded candidates.

    Raises:
        ValueError: the candidates were not recorded.
    """
    if blocks.kept is None:
        raise ValueError("the candidates of these draws were not recorded; set kept to kept_candidates(scores, blocks)")
    return log_probs_of(torch.where(blocks.kept.to(scores.device), scores, -torch.inf).log_softmax(-1), blocks.drawn)


def log_probs_of(scores: Tensor, drawn: Tensor) -> Tensor:
    """(N, T) entries of scores (N, T, K) at the numbers (N, T)."""
    return scores.gather(-1, drawn.to(scores.device)[..., None])[..., 0]


def divergence(scores: Tensor, reference: Tensor) -> Tensor:
    """(N, T) KL divergence in nats of distributions (N, T, K), given as log-probabilities, from those of a reference."""
    odds = scores.exp()
    return torch.where(odds > 0, odds * (scores - reference), 0.0).sum(-1)


def entropy(scores: Tensor) -> Tensor:
    """(N, T) entropy in nats of distributions (N, T, K), given as log-probabilities."""
    odds = scores.exp()
    return -torch.where(odds > 0, odds * scores, 0.0).sum(-1)
