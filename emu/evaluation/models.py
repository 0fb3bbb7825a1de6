"""A transformer as the two functions that calibration asks for: bits of documents, and sampled answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emu.documents import TokenDocument
from emu.generation import Engine
from emu.model import EmuForCausalLM
from emu.worlds import Draws
from emu.worlds.scene_documents import WorldDocuments

ROWS_PER_PASS = 8


@torch.no_grad()
def document_bits(model: EmuForCausalLM, documents: Sequence[TokenDocument], row_length: int = 512) -> np.ndarray:
    """Bits that a model spends on the weighed tokens of documents.

    Documents are packed in order into rows with a mask between them, as in training; probabilities are those of the whole vocabulary.

    Args:
        model: the transformer; run in eval mode.
        documents: of any lengths up to `row_length`.
        row_length: positions of a row.

    Returns:
        (n,) float64, sum over tokens of weight times -log2 of the token's probability.

    Raises:
        ValueError: a document is longer than a row.
    """
    longest = max(map(len, documents), default=0)
    if longest > row_length:
        raise ValueError(f"a document of {longest} tokens does not fit a row of {row_length}; raise row_length")
    bits = np.zeros(len(documents))
    training = model.training
    model.eval()
    rows = _rows(documents, row_length)
    for start in range(0, len(rows), ROWS_PER_PASS):
        some = rows[start : start + ROWS_PER_PASS]
        width = max(sum(len(documents[i]) for i in row) for row in some)
        ids, segments, weights, owner = _lay_out(documents, some, width)
        device = model.device
        logits = model(input_ids=ids.to(device), segment_ids=segments.to(device)).logits  # (R, S, V)
        surprise = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(device), reduction="none"
        ).cpu()
        spent = surprise.double() * weights[:, 1:].flatten() / np.log(2)
        np.add.at(bits, owner[:, 1:].flatten().numpy(), spent.numpy())
    model.train(training)
    return bits


def _rows(documents: Sequence[TokenDocument], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room = 0
    for i, document in enumerate(documents):
        if not rows or len(document) > room:
            rows.append([])
            room = row_length
        rows[-1].append(i)
        room -= len(document)
    return rows


def _lay_out(
    documents: Sequence[TokenDocument], rows: Sequence[Sequence[int]], width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(R, width) ids, segment ids, weights and document numbers; the first token of a document weighs nothing."""
    ids, segments, owner = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    weights = torch.zeros(len(rows), width, dtype=torch.float64)
    for r, row in enumerate(rows):
        start = 0
        for segment, i in enumerate(row):
            span = slice(start, start + len(documents[i]))
            ids[r, span], weights[r, span] = documents[i].ids, documents[i].weights.double()
            segments[r, span], owner[r, span] = segment + 1, i
            weights[r, start] = 0
            start = span.stop
    return ids, segments, weights, owner


class ModelScore:
    """Bits of a model on documents of a world; a `Score` of `emu.evaluation.calibration`.

    Args:
        model: the transformer.
        documents: how the world's scenes are written.
    """

    def __init__(self, model: EmuForCausalLM, documents: WorldDocuments) -> None:
        self.model, self.documents = model, documents

    def __call__(self, task: str, draws: Draws) -> np.ndarray:
        return document_bits(self.model, self.documents.documents(task, draws))


class ModelSample:
    """Answers of a model to prompts of a world; a `Sample` of `emu.evaluation.calibration`.

    Args:
        engine: over the model.
        documents: how the world's scenes are written.
        guidance_scale: 1 samples the model as it is.
        temperature: likewise.
        top_k: 0 keeps all candidates.
        batch_size: prompts at a time.
    """

    def __init__(
        self,
        engine: Engine,
        documents: WorldDocuments,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        batch_size: int = 128,
    ) -> None:
        self.engine, self.documents = engine, documents
        self.guidance_scale, self.temperature, self.top_k = guidance_scale, temperature, top_k
        self.batch_size = batch_size

    def __call__(self, task: str, given: np.ndarray, seed: int) -> np.ndarray:
        answers = [
            self._batch(task, given[start : start + self.batch_size], start, seed)
            for start in range(0, len(given), self.batch_size)
        ]
        target = self.documents.world.task(task).target
        return np.concatenate([self.documents.read(target, some) for some in answers])

    def codes(self, task: str, given: np.ndarray, seed: int) -> Tensor:
        """(n, *grid) generated codes of a task whose target is no text."""
        parts = [
            self._batch(task, given[start : start + self.batch_size], start, seed)
            for start in range(0, len(given), self.batch_size)
        ]
        return torch.cat([part for part in parts if isinstance(part, Tensor)])

    def _batch(self, task: str, given: np.ndarray, start: int, seed: int) -> Tensor | list[Tensor]:
        target = self.documents.world.task(task).target
        prompts = self.documents.prompts(task, given)
        seeds = [seed * 1_000_003 + start + i for i in range(len(given))]
        if target == "caption":
            room = self.documents.longest_caption + 1
            return self.engine.generate_text(
                prompts, max_new_tokens=room, temperature=self.temperature, top_k=self.top_k, seed=seeds
            )
        modality, grid, _ = self.documents.header(target)
        return self.engine.generate_codes(
            prompts,
            None,
            grid,
            modality=modality,
            guidance_scale=1.0 if task == "continuation" else self.guidance_scale,
            temperature=self.temperature,
            top_k=self.top_k,
            seed=seeds,
            prefix_codes=self.documents.beginnings(given) if task == "continuation" else None,
        )
