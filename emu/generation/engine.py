"""The engine: ids in, codes or ids out, for every kind of content that a layout can describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emu.generation.batch_requests import FillRequest, GridRequest
from emu.generation.filling import partial_blocks
from emu.generation.grid_schedule import OnRow
from emu.generation.limits import check_whole
from emu.generation.prompt_ids import (
    Prompts,
    check_headers,
    check_prompts,
    known_codes,
    modality_of,
    negative_rows,
)
from emu.generation.sampling import Sampling, noises
from emu.generation.together import run_together
from emu.generation.window_choice import Window, check_window
from emu.generation.written_answers import WritingEngine
from emu.modalities import Grid


class Engine(WritingEngine):
    """Generates with one model and one layout.

    Args:
        model: the transformer; it is put in eval mode for the time of a call. Its weights may change between calls.
        layout: the grammar of its sequences.
        deterministic: run every product on tiles of a fixed number of rows and attention row by row, so that a sequence is the same to
            the last bit in every batch. Costs up to three times the time at small batches.
        check_length: warn of blocks that end beyond the model's positions; `Emu`, which knows what it was trained for, does so itself.

    Attributes:
        last_stats: what the last call did, a `GenerationStats`.

    Raises:
        ValueError: model and layout have vocabularies of unequal size.
    """

    @torch.no_grad()
    def generate_codes(
        self,
        prompt_ids: Prompts,
        negative_ids: Prompts | None = None,
        grid: Grid = (90, 90),
        *,
        modality: str | None = None,
        guidance_scale: float = 3.0,
        temperature: float = 1.0,
        top_k: int | None = 2048,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        streams: int = 1,
        prefix_codes: Tensor | None = None,
        window: Window = 1,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Generate one block of codes after each prompt.

        Args:
            prompt_ids: 1-D id tensors, each ending in the header of the block (`Layout.header`).
            negative_ids: one per prompt with its own header; BOS and the prompt's own header by default.
            grid: axis lengths of the block, slowest first.
            modality: name of the modality; by default the first of the layout whose grid has as many axes.
            guidance_scale, temperature, top_k, top_p: how codes are drawn, see `Sampling`.
            seed: one, or one per prompt.
            streams: sequences per prompt; sequence k draws from stream k.
            prefix_codes: codes that are given, (prompts, k, ...) or (k, ...): the first k steps of the grid's slowest axis.
            window: tokens tried in one pass; above 1 asks for exact speculative decoding. "auto" times windows 1 and 16 on the first calls
                of a kind (modality, grid, guidance, number of blocks) and keeps the faster.
            on_row: called with (row number, codes of that row of every sequence) when a line along the grid's fastest axis is done.

        Returns:
            (prompts * streams, *grid) int64, 0-based, with a last axis where there are several codebooks; the streams of a prompt
            side by side.

        Raises:
            TypeError, ValueError: an argument does not fit; before any work.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        grid = tuple(int(length) for length in grid)
        modality = modality or modality_of(grid, self.layout)
        sampling = Sampling(guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p)
        prompts, negatives = self._checked(prompt_ids, negative_ids, modality, grid, guided=sampling.guided)
        return self.generate_grids(
            prompts,
            negatives,
            modality,
            grid,
            sampling,
            seed=seed,
            streams=check_whole("streams", streams, least=1),
            prefix_codes=prefix_codes,
            window=check_window(window),
            on_row=on_row,
        )

    @torch.no_grad()
    def generate_grids(
        self,
        prompts: Sequence[Tensor],
        negatives: Sequence[Tensor],
        modality: str,
        grid: Grid,
        sampling: Sampling,
        *,
        seed: int | Sequence[int] = 0,
        streams: int | Sequence[int] = 1,
        prefix_codes: Tensor | None = None,
        window: Window = 1,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """`generate_codes` for callers that wrote the headers themselves: nothing is read back from the prompts.

        Args:
            prompts: 1-D int64 tensors on the CPU, each ending in the header of a block of this modality and grid.
            negatives: what each is guided against, as prompts are; not read without guidance.
            sampling: how codes are drawn.
            streams: sequences per prompt, or a list with the stream of each prompt's only sequence.
            modality, grid, others, result: as for `generate_codes`.

        Raises:
            ValueError: given codes do not fit the block, or another number of seeds than prompts; before any work.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        template = self.layout.block(modality, grid)
        noise = noises(seed, len(prompts), streams)
        known = known_codes(prefix_codes, template, grid, len(prompts))
        prefixes = known.unflatten(1, (-1, *template.shape[1:])) if known.shape[1] else [None] * len(prompts)
        kind = (modality, grid, sampling.guided, len(prompts) * (streams if isinstance(streams, int) else 1))
        chosen = self._windows.pick(kind) if window == "auto" else window
        requests = [
            GridRequest(
                prompts[number],
                negatives[number] if sampling.guided else None,
                modality,
                grid,
                sampling,
                prefix_codes=prefixes[number],
                window=chosen,
                seed=own,
                stream=stream,
            )
            for number, own, stream in noise
        ]
        longest = max(max(map(len, side)) for side in ([prompts, negatives] if sampling.guided else [prompts]))
        self._check_length(longest + len(template))
        timed = kind if window == "auto" and known.shape[1] < math.prod(template.shape) else None
        return torch.stack(self._timed(requests, timed, chosen, on_row))

    @torch.no_grad()
    def fill_codes(
        self,
        prompt_ids: Prompts,
        codes: Tensor,
        hidden: Tensor,
        negative_ids: Prompts | None = None,
        *,
        modality: str | None = None,
        guidance_scale: float = 3.0,
        temperature: float = 1.0,
        top_k: int | None = 2048,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        streams: int | Sequence[int] = 1,
        window: Window = 1,
    ) -> Tensor:
        """Generate the hidden cells of a block after each prompt; masks may differ from block to block.

        Args:
            prompt_ids, negative_ids: as for `generate_codes`; what is kept of the block is shown after each of them.
            codes: (prompts, *grid) int64, or (1, *grid) for all of them; with a last axis where there are several codebooks.
            hidden: (prompts, *grid) bool, or (1, *grid): the cells to be generated, whose codes are not read; there may be none.
            modality, guidance_scale, temperature, top_k, top_p, seed, window: as for `generate_codes`.
            streams: sequences per prompt, or a list with the stream of each prompt's only sequence.

        Returns:
            (prompts * streams, *grid) int64, with a last axis where there are several codebooks: kept cells as they were given.

        Raises:
            TypeError, ValueError: an argument does not fit, or the vocabulary has no control for holes; before any work.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        grid = tuple(torch.as_tensor(hidden).shape[1:])
        modality = modality or modality_of(grid, self.layout)
        sampling = Sampling(guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p)
        prompts, negatives = self._checked(prompt_ids, negative_ids, modality, grid, guided=sampling.guided)
        each, window = check_whole("streams", streams, least=1) if isinstance(streams, int) else 1, check_window(window)
        template = self.layout.block(modality, grid)
        blocks = partial_blocks(template, codes, hidden, len(prompts))
        noise = noises(seed, len(prompts), streams)
        some = [number for number, block in enumerate(blocks) if block.hidden.any()]
        kind = ("filled", modality, grid, sampling.guided, len(some) * each)
        chosen = self._windows.pick(kind) if window == "auto" else window
        requests = [
            FillRequest(
                prompts[number],
                negatives[number] if sampling.guided else None,
                modality,
                grid,
                blocks[number].codes,
                blocks[number].hidden,
                sampling,
                window=chosen,
                seed=own,
                stream=stream,
            )
            for number, own, stream in noise
        ]
        longest = max(map(len, [*prompts, *negatives]))
        most = max(int(block.hidden.sum()) for block in blocks) * template.codebooks
        self._check_length(longest + len(template) + most + 1 if some else 0)
        return torch.stack(self._timed(requests, kind if window == "auto" and some else None, chosen))

    def _checked(
        self, prompt_ids: Prompts, negative_ids: Prompts | None, modality: str, grid: Grid, *, guided: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Prompts that end in the header of a block, and what each is guided against, nothing without guidance."""
        vocab_size = self.model.config.vocab_size
        prompts = check_prompts(prompt_ids, vocab_size)
        check_headers(prompts, self.layout, modality, grid)
        return prompts, negative_rows(prompts, negative_ids, self.layout, vocab_size) if guided else []

    def _timed(
        self,
        requests: Sequence[GridRequest | FillRequest],
        kind: tuple[Any, ...] | None,
        window: int,
        on_row: OnRow | None = None,
    ) -> list[Tensor]:
        """The codes of some requests; their time is noted under a kind where windows are compared."""
        # The first call also packs the weights, which says nothing about the window.
        prepared, begun = self._linear is not None, self._windows.clock()
        found, stats = run_together(self, requests, on_row)
        self.last_stats = stats or self.last_stats
        if kind is not None and prepared:
            self._windows.note(kind, window, self._windows.clock() - begun)
        return found
