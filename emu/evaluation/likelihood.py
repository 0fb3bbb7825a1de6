"""Bits that a model spends on what documents ask for, by token and by pixel.

What a document asks for is the part of its last segment that weighs most: the codes of a block, or words and the end after them. What the
grammar forces (ends of rows, headers that the prompt gives) is no part of it. Bits are -log2 of probabilities over the whole vocabulary, as
in training, so that they compare with losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from emu.documents import Span, TokenDocument
from emu.evaluation.measures import Measure, mean_measure
from emu.evaluation.models import document_bits
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.trained import TEXT

ROW = 512
"""Positions of a row, or as many as the longest document has."""


@dataclass(frozen=True)
class Likelihoods:
    """What a model spends on documents of one task.

    Attributes:
        modality: of what is asked for: "text", "image", "video", ...
        bits: (n,) float64 of each document.
        tokens: (n,) int64 tokens that they are spent on.
        pixels: (n,) int64 pixels that these tokens stand for; zeros for what has none.
        items: digest of the documents.
    """

    modality: str
    bits: np.ndarray
    tokens: np.ndarray
    pixels: np.ndarray
    items: object

    def per_token(self) -> Measure:
        """Bits a token."""
        return ratio(self.bits, self.tokens, self.items)

    def per_pixel(self) -> Measure | None:
        """Bits a pixel, None for what has none."""
        return ratio(self.bits, self.pixels, self.items) if self.pixels.any() else None


def likelihoods(
    model: EmuForCausalLM, tokenizer: MultimodalTokenizer, documents: Sequence[TokenDocument]
) -> Likelihoods:
    """Bits of documents of one task.

    Args:
        model: the transformer.
        tokenizer: of the documents.
        documents: whose last segments are of one modality.

    Raises:
        ValueError: there are none, or they ask for several modalities.
    """
    asked = [asked_for(tokenizer, document) for document in documents]
    modalities = sorted({span.modality for _, span in asked})
    if len(modalities) != 1:
        raise ValueError(f"{len(documents)} documents ask for {modalities}; expected documents of one modality")
    marked = [replace(document, weights=mask.float()) for document, (mask, _) in zip(documents, asked, strict=True)]
    bits = document_bits(model, marked, max(ROW, max(map(len, marked))))
    tokens = np.array([int(mask.sum()) for mask, _ in asked])
    pixels = tokens * pixels_per_token(tokenizer, modalities[0])
    identity = [document.ids.tolist() for document in documents]
    return Likelihoods(modalities[0], bits, tokens, pixels.round().astype(np.int64), identity)


def asked_for(tokenizer: MultimodalTokenizer, document: TokenDocument) -> tuple[Tensor, Span]:
    """What a document asks for: (n,) bool tokens, and the segment in which they lie.

    Raises:
        ValueError: the document asks for nothing.
    """
    layout, ids = tokenizer.layout, document.ids
    span = (document.spans or layout.spans(ids))[-1]
    inside = torch.zeros(len(ids), dtype=torch.bool)
    # Text ends with what follows it, which is predicted as its words are.
    inside[span.start : span.start + span.length if span.modality != TEXT else len(ids)] = True
    if span.modality != TEXT:
        ranges = layout.code_ranges(layout.modality(span.modality).codebook)
        inside &= torch.stack([(ids >= first) & (ids < first + count) for first, count in ranges]).any(0)
    weights = document.weights * inside
    if not weights.any():
        raise ValueError("a document asks for nothing: all tokens of its last segment weigh 0")
    return (weights == weights.max()) & inside, span


def pixels_per_token(tokenizer: MultimodalTokenizer, modality: str) -> float:
    """Pixels that a code of a modality stands for; 0 where codes stand for no pixels."""
    known = tokenizer.layout.modalities.get(modality)
    vision = tokenizer.vision
    if known is None or vision is None or modality not in ("image", "video"):
        return 0.0
    frames = vision.temporal_factor if known.rank == 3 else 1
    return vision.spatial_factor**2 * frames / len(tokenizer.layout.code_ranges(known.codebook))


def ratio(bits: np.ndarray, units: np.ndarray, items: object) -> Measure:
    """Sum of bits by sum of units, with the interval of a ratio of means (the delta method)."""
    whole = bits.sum() / units.sum()
    return mean_measure(whole + (bits - whole * units) / units.mean(), items)
