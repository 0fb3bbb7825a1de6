"""The part of the engine that writes: text after prompts, and documents of text and blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from emu.documents import Segment
from emu.generation.batch_requests import DocumentTextRequest, GridRequest, TextRequest
from emu.generation.generation_stats import GenerationStats
from emu.generation.interleaved import Writer, next_piece
from emu.generation.limits import check_whole, room_for_text
from emu.generation.model_runner import ModelRunner
from emu.generation.prompt_ids import Prompts, begun_document, check_prompts
from emu.generation.sampling import Sampling, noises
from emu.generation.together import run_together

TEXT = Sampling()
CODES = Sampling(guidance_scale=3.0, top_k=2048)


class WritingEngine(ModelRunner):
    """Writes with one model and one layout; see `Engine`."""

    @torch.no_grad()
    def generate_text(
        self,
        prompt_ids: Prompts,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        streams: int = 1,
    ) -> list[Tensor]:
        """Write text after each prompt, up to the end token.

        Args:
            prompt_ids: 1-D id tensors.
            max_new_tokens: most tokens written; none are written beyond the model's positions.
            temperature, top_k, top_p, seed, streams: as for `generate_codes`.

        Returns:
            One 1-D int64 tensor of text ids per sequence, without the end token.

        Raises:
            TypeError, ValueError: an argument does not fit, or a prompt fills the model's positions; before any work.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        return self.continue_texts(
            check_prompts(prompt_ids, self.model.config.vocab_size),
            Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            max_new_tokens=check_whole("max_new_tokens", max_new_tokens, least=1),
            seed=seed,
            streams=check_whole("streams", streams, least=1),
        )

    @torch.no_grad()
    def continue_texts(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] = 0,
        streams: int = 1,
    ) -> list[Tensor]:
        """`generate_text` for prompts and settings that are checked: 1-D int64 tensors on the CPU, and how tokens are drawn.

        Raises:
            ValueError: a prompt fills the model's positions, or another number of seeds than prompts; before any work.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        noise = noises(seed, len(prompts), streams)
        requests = [
            TextRequest(prompts[number], sampling, max_new_tokens, own, stream) for number, own, stream in noise
        ]
        found, self.last_stats = run_together(self, requests)
        return found

    def writer(
        self,
        prompt_ids: Tensor | Sequence[int],
        *,
        negative_ids: Tensor | Sequence[int] | None = None,
        headers: Sequence[Sequence[int]] | None = None,
        text: Sampling = TEXT,
        codes: Sampling = CODES,
        max_text_tokens: int = 256,
        max_blocks: int = 4,
        one_size: bool = False,
        seed: int = 0,
        stream: int = 0,
    ) -> Writer:
        """What continues one document with text and blocks in any order, once its requests are run (see `written`).

        Blocks are guided; text is not.

        Args:
            prompt_ids: (n,) ids that begin with BOS and do not end within a header or a block; they may end in a header.
            negative_ids: what blocks are guided against, (n,) ids that begin with BOS; the blocks written so far and the block's own header
                follow them. By default BOS and the own header.
            headers: the headers that the model may write; any readable one by default.
            text: how tokens of text are drawn.
            codes: how codes are drawn.
            max_text_tokens: tokens of text after which the document ends; it also ends at the model's positions.
            max_blocks: number of blocks after which no other begins.
            one_size: whether all blocks have the header of the first that is written.
            seed, stream: of the noise.

        Raises:
            TypeError, ValueError: an argument does not fit, or the prompt fills the model's positions; before any work.
        """
        prompt, cursor = begun_document(prompt_ids, self.layout, headers, self.model.config.vocab_size)
        positions = self.model.config.max_position_embeddings
        room_for_text([prompt], positions, check_whole("max_text_tokens", max_text_tokens, least=1))
        if cursor.block is not None:
            self._check_length(len(prompt) + len(cursor.block))
        negative = None
        if negative_ids is not None:
            (negative,) = check_prompts([negative_ids], self.model.config.vocab_size, "negative_ids")
        ((_, seed, stream),) = noises(seed, 1, [stream])
        return Writer(
            self.layout,
            cursor,
            prompt,
            text=text,
            codes=codes,
            seed=seed,
            stream=stream,
            max_text_tokens=max_text_tokens,
            max_blocks=check_whole("max_blocks", max_blocks, least=1),
            positions=positions,
            one_size=one_size,
            negative=negative,
        )

    def generate(self, prompt_ids: Tensor | Sequence[int], **options: Any) -> Iterator[Segment]:
        """Continue one document with text and blocks in any order: `written` of `writer`, which takes the same options."""
        return self.written(self.writer(prompt_ids, **options))

    @torch.no_grad()
    def written(self, writer: Writer) -> Iterator[Segment]:
        """Run the requests of a document.

        Yields:
            `TextSegment`s and `CodeSegment`s, each when it is complete. `last_stats` counts what was done up to then.

        Raises:
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        begun, passes, tokens = time.perf_counter(), 0, 0
        work = writer.work()
        outcome: Tensor | None = None
        while (item := next_piece(work, outcome)) is not None:
            outcome = None
            if isinstance(item, (GridRequest, DocumentTextRequest)):
                (outcome,), stats = run_together(self, [item])
                assert stats is not None  # neither has all of its tokens
                passes, tokens = passes + stats.passes, tokens + stats.tokens
                continue
            seconds = time.perf_counter() - begun
            self.last_stats = GenerationStats(1, tokens, passes, tokens / max(1, passes), seconds)
            yield item
