"""Generate blocks in batches that fit in memory, and yield them one by one in order."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from emu.generation import Engine, Sampling
from emu.generation.sequence_memory import drawing_memory
from emu.generation.window_choice import CANDIDATES, Window
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.drawing_memory import DrawingMemory, decoding_memory, shown_bytes
from emu.pipeline.grid_requests import PreparedBlock
from emu.pipeline.long_clips import part_seed
from emu.pipeline.requests import batches

Result = TypeVar("Result")
AHEAD = 8
"""So many batches of blocks are looked at together, so that blocks of one size that lie apart share a batch."""


@dataclass
class GridDrawing:
    """How blocks are generated.

    Attributes:
        engine, tokenizer: of the model.
        sampling: sampling settings of codes.
        window: tokens per pass, see `Engine.generate_grids`.
        batch_size: maximum number of blocks in a batch; halved if memory runs out anyway.
        budget: memory limit of a batch in bytes, None for no limit.
    """

    engine: Engine
    tokenizer: MultimodalTokenizer
    sampling: Sampling
    window: Window
    batch_size: int
    budget: int | None

    def memory(self, requests: Sequence[PreparedBlock]) -> DrawingMemory:
        """Return the memory of blocks of one kind; rows of a batch are as long as the longest."""
        guided = self.sampling.guided
        prompt = max(max(len(one.head), len(one.negative) if guided else 0) for one in requests)
        drawn = max(0 if one.hidden is None else int(one.hidden.sum()) for one in requests)
        first = requests[0]
        memory = self.memory_of(first.modality, first.grid, prompt, drawn)
        if first.parts is None:
            return memory
        whole = (first.parts.latents, *first.grid[1:])
        return replace(memory, decoding=decoding_memory(self.tokenizer.vision, whole))

    def memory_of(self, modality: str, grid: Grid, prompt: int, hidden: int = 0) -> DrawingMemory:
        """Return the memory of blocks of this modality and grid after prompts of this length, with N hidden cells if others are given."""
        model, template = self.engine.model, self.tokenizer.layout.block(modality, grid)
        sequence = drawing_memory(
            model.config,
            model.dtype,
            model.device,
            prompt=prompt + (len(template) if hidden else 0),
            block=1 + hidden * template.codebooks if hidden else len(template),
            candidates=int(template.count.max()),
            guided=self.sampling.guided,
            window=max(CANDIDATES) if self.window == "auto" else self.window,
        )
        decoding = decoding_memory(self.tokenizer.vision, grid)
        return DrawingMemory(sequence, decoding, self.engine.bytes_to_copy)

    def check(self, requests: Sequence[PreparedBlock]) -> None:
        """Raise ValueError if a single block does not fit the budget."""
        for request in {one.kind: one for one in sorted(requests, key=lambda one: one.tokens)}.values():
            needed = self.memory([request])
            if not needed.fitting(1, self.budget):
                raise ValueError(
                    f"one {request.modality} of {'x'.join(map(str, request.grid))} codes takes {shown_bytes(needed.peak(1))} of memory, "
                    f"and {shown_bytes(self.budget or 0)} may be used; ask for a smaller size, fewer frames or guidance_scale=1, load the "
                    "model with dtype=torch.bfloat16, or allow more with memory"
                )

    def made(
        self, requests: Sequence[PreparedBlock], finish: Callable[[PreparedBlock, Tensor], Result], *, progress: bool
    ) -> Iterator[Result]:
        """Generate all blocks in order, each finished and yielded as soon as those before it are.

        Blocks wait as codes and are finished in turn, so that only the pixels of one are in memory.

        Raises:
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: a single block does not fit.
        """
        unit = requests[0].modality
        with tqdm(total=len(requests), unit=unit, disable=not progress, dynamic_ncols=True) as bar:
            ahead = AHEAD * self.batch_size
            for start in range(0, len(requests), ahead):
                for request, codes in self._in_order(requests[start : start + ahead]):
                    result = finish(request, codes)
                    bar.update()
                    yield result

    def _in_order(self, requests: Sequence[PreparedBlock]) -> Iterator[tuple[PreparedBlock, Tensor]]:
        waiting: dict[int, Tensor] = {}
        following = 0
        for indices in batches(requests, lambda one: one.kind, len(requests)):
            for index, codes in zip(indices, self._codes([requests[index] for index in indices]), strict=True):
                waiting[index] = codes
                while following in waiting:
                    yield requests[following], waiting.pop(following)
                    following += 1

    def _codes(self, requests: Sequence[PreparedBlock]) -> Iterator[Tensor]:
        """Codes of blocks of one kind, in batches that memory holds."""
        memory, start = self.memory(requests), 0
        while start < len(requests):
            batch = requests[start : start + max(1, memory.fitting(self.batch_size, self.budget))]
            codes = self._drawn(batch)
            if codes is None:
                self.batch_size = max(1, len(batch) // 2)
                continue
            start += len(batch)
            yield from codes

    def _drawn(self, batch: Sequence[PreparedBlock]) -> Tensor | None:
        """Codes of one batch, None where it is too large for the memory."""
        first = batch[0]
        given = None if first.given is None else torch.stack([_present(request.given) for request in batch])
        try:
            if first.hidden is not None:
                return self._filled(batch, _present(given))
            if first.parts is not None:
                return first.parts.drawn(given, lambda known, number: self._part(batch, known, number))
            return self._part(batch, given, 0)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        gc.collect()  # after the error, whose frames held the tensors of the batch
        if self.engine.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _part(self, batch: Sequence[PreparedBlock], given: Tensor | None, number: int) -> Tensor:
        """Codes of blocks that are drawn in order after those given (B, k, ...); of a clip in parts, those of one of them."""
        first = batch[0]
        return self.engine.generate_grids(
            [request.head for request in batch],
            [request.negative for request in batch],
            first.modality,
            first.grid,
            self.sampling,
            seed=[part_seed(request.seed, number) for request in batch],
            streams=[request.stream for request in batch],
            prefix_codes=given,
            window=self.window,
        ).cpu()

    def _filled(self, batch: Sequence[PreparedBlock], given: Tensor) -> Tensor:
        """Codes (B, ...) of blocks of which cells are hidden."""
        sampling: dict[str, Any] = asdict(self.sampling)
        return self.engine.fill_codes(
            [request.head for request in batch],
            given,
            torch.stack([_present(request.hidden) for request in batch]),
            [request.negative for request in batch],
            modality=batch[0].modality,
            **sampling,
            seed=[request.seed for request in batch],
            streams=[request.stream for request in batch],
            window=self.window,
        ).cpu()


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # of blocks of one kind, all have it or none has
    return tensor
