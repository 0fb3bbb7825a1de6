"""Accuracy against variety: how often pictures show what was asked, and how many bits of them the prompt left free, at guidance scales.

Bits are those of the distribution that was sampled: guided, tempered, cut to its candidates. The mean of -log2 q(picture) over pictures
drawn from q is an unbiased estimate of the entropy of q; where the possible pictures can be listed (one object in a world), q of each is
computed and nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from emu.documents import TokenDocument
from emu.evaluation.measures import Measure, mean_measure, share_measure
from emu.evaluation.statistics import Interval, entropy_bits
from emu.generation import Engine, Sampling
from emu.generation.prompt_ids import negative_rows
from emu.layouts import Layout
from emu.modalities import Grid
from emu.training.objectives.code_distributions import DrawnBlocks, block_scores, drawn_log_probs, kept_candidates
from emu.worlds.scene_documents import WorldDocuments

BATCH = 64
"""Pictures that are drawn or scored together."""


@dataclass(frozen=True)
class VarietyPoint:
    """What one guidance scale gives.

    Attributes:
        guidance_scale: of the pictures.
        right: share that shows what was asked.
        bits: bits of a picture that the prompt leaves free.
        truth: the same of the world's true law, None where nobody knows it.
    """

    guidance_scale: float
    right: Measure
    bits: Measure
    truth: float | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompts of pictures of one grid.

    Attributes:
        ids: (n,) ids of each, ending in the header of its block.
        grid: of the pictures.
        captions: what they say.
    """

    ids: Sequence[Tensor]
    grid: Grid
    captions: Sequence[str]

    @classmethod
    def of(cls, layout: Layout, documents: Sequence[TokenDocument]) -> Prompts:
        """The prompts of documents that are words and then a picture."""
        ids, captions, grids = [], [], set[Grid]()
        for document in documents:
            *words, block = document.spans or layout.spans(document.ids)
            start = block.start + (layout.header_length(document.ids[block.start :]) or 0)
            ids.append(document.ids[:start])
            texts = [document.ids[span.start : span.start + span.length] for span in words]
            captions.append("".join(layout.decode_text(text.tolist()) for text in texts))
            grids.add(block.grid)
        if len(grids) != 1:
            raise ValueError(f"pictures of the grids {sorted(grids)}; expected pictures of one size")
        return cls(ids, grids.pop(), captions)


@torch.no_grad()
def draw(engine: Engine, prompts: Prompts, sampling: Sampling, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Draw a picture for each prompt.

    Returns:
        Codes (n, *grid), and (n,) float64 bits with which each was drawn: -log2 of its probability.
    """
    codes, bits = [], []
    for start in range(0, len(prompts.ids), BATCH):
        some = list(prompts.ids[start : start + BATCH])
        seeds = [seed * 1_000_003 + start + i for i in range(len(some))]
        negatives = negatives_of(engine, some)
        drawn = engine.generate_grids(some, negatives, "image", prompts.grid, sampling, seed=seeds)
        codes.append(drawn)
        bits.append(bits_of(engine, some, drawn, prompts.grid, sampling))
    return torch.cat(codes), np.concatenate(bits)


def negatives_of(engine: Engine, ids: Sequence[Tensor]) -> list[Tensor]:
    """What prompts are guided against when nothing is said: their own headers."""
    return negative_rows(ids, None, engine.layout, engine.model.config.vocab_size)


@torch.no_grad()
def bits_of(engine: Engine, ids: Sequence[Tensor], codes: Tensor, grid: Grid, sampling: Sampling) -> np.ndarray:
    """(n,) float64 bits of codes (n, *grid) under the distribution that the engine would draw them from after prompts."""
    template = engine.layout.block("image", grid)
    whole = DrawnBlocks(ids, negatives_of(engine, ids), codes, template, sampling)
    found = []
    for blocks in whole.split(BATCH):
        scores = block_scores(engine.model, blocks).open
        drawn = drawn_log_probs(scores, replace(blocks, kept=kept_candidates(scores, blocks)))
        found.append(-drawn.double().sum(1).cpu().numpy() / math.log(2))
    return np.concatenate(found)


def exact_points(
    engine: Engine, documents: WorldDocuments, captions: np.ndarray, samplings: Sequence[Sampling]
) -> Iterator[VarietyPoint]:
    """The same in a world whose pictures can be listed: the probability of each possible picture, nothing drawn.

    `right` is the probability that the model draws a possible picture, `bits` the entropy of its distribution over those; means over the
    captions, without an interval.

    Args:
        engine: over the model.
        documents: of the world.
        captions: (n,) numbers of captions, all that there are of a kind.
        samplings: without top-k and top-p, which would rule pictures out.
    """
    world = documents.world
    table = world.table("picture", "caption")
    pictures, odds, owner = table.all_outcomes(captions)
    prompts = documents.prompts("text-to-image", captions)
    ids, codes = [prompts[number] for number in owner], documents.codes("picture", pictures)
    truth = float(np.bincount(owner, -odds * np.log2(odds), len(captions)).mean())
    for sampling in samplings:
        bits = bits_of(engine, ids, codes, documents.header("picture")[1], sampling)
        probability = np.exp2(-bits)
        right = np.bincount(owner, probability, len(captions))
        least = np.full(len(captions), np.inf)
        np.minimum.at(least, owner, bits)
        likely = np.exp2(least[owner] - bits)  # those of improbable pictures alone would all round to 0
        share = likely / np.bincount(owner, likely, len(captions))[owner]
        entropy = np.bincount(owner, -share * np.log2(np.maximum(share, 1e-300)), len(captions))
        yield VarietyPoint(sampling.guidance_scale, computed(right), computed(entropy), truth)


def computed(values: np.ndarray) -> Measure:
    """The mean over all prompts of what was computed and not drawn: there is nothing to be unsure of."""
    value = float(values.mean())
    return Measure(Interval(value, value, value, len(values)))


def attribute_entropies(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Entropy in bits of what was drawn for each prompt, after Miller and Madow; 0 where nothing was seen.

    Pooled over prompts, a model that draws one picture for each prompt would look as varied as the prompts.

    Args:
        values: (n,) int64 what each picture shows, -1 for what does not count.
        prompts: (n,) int64 its prompt.

    Returns:
        (number of different prompts,) float64.
    """
    found = []
    for prompt in np.unique(prompts):
        seen = values[(prompts == prompt) & (values >= 0)]
        found.append(entropy_bits(np.bincount(seen)) if len(seen) else 0.0)
    return np.array(found)


def sampled_point(right: np.ndarray, bits: np.ndarray, scale: float, items: object) -> VarietyPoint:
    """A point of pictures that were drawn and graded: (n,) bool and (n,) bits."""
    return VarietyPoint(scale, share_measure(right, items), mean_measure(bits, items))
