"""A world of four prompts whose outcomes can be enumerated, and a plain float64 computation of what is expected of them.

Pictures are 2x2 codes of which top-k leaves three at each place, so that a prompt has 81 outcomes. Nothing here is shared with
`emu.training.objectives`: every distribution comes from one sequence at a time, without batches, caches or packing.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch

from emu.documents import TokenDocument
from emu.generation.sampling import Sampling
from emu.packing import pack
from emu.training.objectives import GRPO

SAMPLING = Sampling(guidance_scale=3.0, temperature=1.3, top_k=3)
PROMPTS = ("a red circle", "a ball", "rolling left", "a circle rolling")
SUCCESS = (0.05, 0.2, 0.5, 0.9)
"""About how often each prompt's answers are right at first."""


def prompt_of(emu, text, size=2):
    return emu.tokenizer.prompt([text], "image", (size, size))


def batch_of(prompts):
    documents = [TokenDocument(prompt, torch.ones(len(prompt))) for prompt in prompts]
    return pack(documents, max(map(len, documents)))


def module_of(emu, model=None):
    """What an objective asks of the module that trains."""
    return SimpleNamespace(model=emu.model if model is None else model, trainer=SimpleNamespace(datamodule=emu))


def plain_logits(model, prompt, template, codes):
    """(T, K) logits of the codes of one block, from one unpacked sequence."""
    block = template.fill(codes)
    free, first, count = template.free.nonzero()[:, 0], template.first, template.count
    logits = model(torch.cat([prompt, block])[None]).logits[0]
    rows = [logits[len(prompt) + place - 1, first[place] : first[place] + count[place]] for place in free.tolist()]
    return torch.stack(rows)


def plain_kept(scores, sampling):
    """(T, K) candidates that top-k and top-p leave, one code after another."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for row, candidates in zip(kept, scores, strict=True):
        order = candidates.argsort(descending=True)[: sampling.top_k or None].tolist()
        odds = candidates[order].softmax(0).tolist()
        for rank, number in enumerate(order):
            row[number] = sum(odds[:rank]) < sampling.top_p
    return kept


def plain_log_probs(model, prompt, negative, template, codes, sampling, kept=None):
    """(T,) log-probabilities of drawn codes, and the candidates (T, K) that were left."""
    scores = plain_logits(model, prompt, template, codes)
    if sampling.guidance_scale != 1:
        without = plain_logits(model, negative, template, codes)
        scores = without + sampling.guidance_scale * (scores - without)
    scores = scores / sampling.temperature
    kept = plain_kept(scores.detach(), sampling) if kept is None else kept
    odds = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    return odds.gather(1, codes.flatten()[:, None])[:, 0].log(), kept


class Enumerated:
    """All outcomes of a prompt under a model in float64."""

    def __init__(self, emu, text, sampling=SAMPLING):
        self.model = copy.deepcopy(emu.model).double().eval()
        self.template = emu.tokenizer.layout.block("image", (2, 2))
        self.prompt = prompt_of(emu, text)
        header = emu.tokenizer.layout.own_header(self.prompt)
        self.negative = torch.cat([self.prompt[:1], header])
        self.codes, self.log_probs = [], []
        self._grow(torch.zeros(2, 2, dtype=torch.int64), 0, sampling)
        self.log_probs = torch.stack(self.log_probs)

    def _grow(self, codes, place, sampling):
        log_probs, kept = plain_log_probs(
            self.model, self.prompt, self.negative, self.template, codes.clone(), sampling
        )
        if place == 4:
            self.codes.append(codes.clone())
            self.log_probs.append(log_probs.sum())
            return
        # What follows a place does not change its own distribution, so that the codes not chosen yet may be any.
        for code in kept[place].nonzero()[:, 0].tolist():
            codes.view(-1)[place] = code
            self._grow(codes, place + 1, sampling)
        codes.view(-1)[place] = 0

    def gradient(self, values):
        """Gradient (n,) of the sum over outcomes of values * probability, values held fixed."""
        expected = (self.log_probs.exp() * values).sum()
        weights = list(self.model.parameters())
        found = torch.autograd.grad(expected, weights, retain_graph=True, materialize_grads=True, allow_unused=True)
        return torch.cat([part.flatten() for part in found])


class KnownOutcomes:
    """A reward that is 1 for some outcomes of each prompt, so many that they have about a given share of the probability."""

    def __init__(self, worlds, shares=SUCCESS):
        self.right = {}
        for (text, world), share in zip(worlds.items(), shares, strict=True):
            odds = world.log_probs.detach().exp()
            order = torch.randperm(len(odds), generator=torch.Generator().manual_seed(len(text)))
            taken, total = [], 0.0
            for number in order.tolist():
                if total + float(odds[number]) <= share:
                    taken.append(number)
                    total += float(odds[number])
            self.right[text] = {tuple(world.codes[number].flatten().tolist()) for number in taken}

    def values(self, text, world):
        right = [tuple(one.flatten().tolist()) in self.right[text] for one in world.codes]
        return torch.tensor(right, dtype=torch.float64)

    def __call__(self, candidates):
        return [float(tuple(one.codes.flatten().tolist()) in self.right[one.prompt]) for one in candidates]


def sampled_gradient(objective, emu, text, groups, seed):
    """Gradient (n,) that the objective's loss has on one batch of groups that it draws, with the sign of an ascent."""
    torch.manual_seed(seed)
    emu.model.zero_grad()
    objective.loss(emu.model, batch_of([prompt_of(emu, text)] * groups)).loss.backward()
    return -torch.cat([one.grad.flatten() for one in emu.model.parameters()]).double()


def cosine(ours, theirs):
    return float(ours @ theirs / ours.norm() / theirs.norm())


def cosine_error(parts, exact):
    """Standard error of the cosine of the mean of gradients (m, n), by leaving out one at a time."""
    total, m = parts.sum(0), len(parts)
    left = torch.tensor([cosine(total - part, exact) for part in parts])
    return float(((left - left.mean()).square().sum() * (m - 1) / m).sqrt())


def grpo(emu, reward, cls=GRPO, **options):
    objective = cls(reward, **{"sampling": SAMPLING, **options})
    objective.setup(module_of(emu))
    return objective
