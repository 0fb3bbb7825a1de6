"""A transformer as the two functions that calibration asks for: bits of documents, and sampled answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu.documents import TokenDocument
from emu.generation import Engine
from emu.model import EmuForCausalLM
from emu.model.scoring import token_losses
from emu.packing import pack
from emu.worlds import Draws, FillWorld
from emu.worlds.scene_documents import WorldDocuments

ROWS_PER_PASS = 8
PROMPTS_AT_A_TIME, PROMPTS_ON_GPU = 128, 2048
"""Prompts that are answered together. On a GPU a pass over thousands of short rows takes about as long as one over a hundred."""


@torch.no_grad()
def document_bits(model: EmuForCausalLM, documents: Sequence[TokenDocument], row_length: int = 512) -> np.ndarray:
    """Bits that a model spends on the weighed tokens of documents.

    Documents are packed into rows with a mask between them, as in training; probabilities are those of the whole vocabulary.

    Args:
        model: the transformer; run in eval mode.
        documents: of any lengths up to `row_length`.
        row_length: positions of a row.

    Returns:
        (n,) float64, sum over tokens of weight times -log2 of the token's probability.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    packed = pack(documents, row_length, source_ids=range(len(documents)))
    bits = np.zeros(len(documents))
    training = model.training
    model.eval()
    for rows in packed.passes(ROWS_PER_PASS):
        nats = token_losses(model, rows.to(model.device)).cpu().double()
        spent = nats * rows.loss_weights / np.log(2)
        weighed = rows.loss_weights > 0
        np.add.at(bits, rows.source_ids[weighed].numpy(), spent[weighed].numpy())
    model.train(training)
    return bits


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
        batch_size: prompts at a time; by default as many as suit the model's device.
    """

    def __init__(
        self,
        engine: Engine,
        documents: WorldDocuments,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.engine, self.documents = engine, documents
        self.guidance_scale, self.temperature, self.top_k = guidance_scale, temperature, top_k
        self.batch_size = batch_size or (PROMPTS_AT_A_TIME if engine.model.device.type == "cpu" else PROMPTS_ON_GPU)

    def __call__(self, task: str, given: np.ndarray, seed: int) -> np.ndarray:
        found = []
        for start in range(0, len(given), self.batch_size):
            some = given[start : start + self.batch_size]
            found.append(self.documents.read(task, self._batch(task, some, start, seed), some))
        return np.concatenate(found)

    def codes(self, task: str, given: np.ndarray, seed: int) -> Tensor:
        """(n, *grid) generated codes of a task whose target is not text."""
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
        drawn: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "seed": seeds,
            "modality": modality,
        }
        if isinstance(self.documents.world, FillWorld):
            shown = self.documents.codes(target, self.documents.world.completed(given))
            hidden = self.documents.hidden(given)
            return self.engine.fill_codes(prompts, shown, hidden, guidance_scale=self.guidance_scale, **drawn)
        return self.engine.generate_codes(
            prompts,
            None,
            grid,
            guidance_scale=1.0 if task == "continuation" else self.guidance_scale,
            prefix_codes=self.documents.beginnings(given) if task == "continuation" else None,
            **drawn,
        )
