"""A text generation call between its two halves: prompts, which any engine may continue, and how ids become text and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from torch import Tensor

from emu.documents import Segment
from emu.generation import Sampling
from emu.generation.interleaved import Writer
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import Size


class DocumentOptions(TypedDict, total=False):
    """Options of `Emu.prepare_document`."""

    size: Size | Literal["auto"] | None
    frames: int | None
    fps: float | None
    guidance_scale: float | None
    temperature: float | None
    top_k: int | None | Literal["default"]
    top_p: float | None
    text_temperature: float | None
    text_top_k: int | None
    text_top_p: float | None
    max_new_tokens: int
    max_blocks: int
    seed: int
    strict: bool


@dataclass(frozen=True)
class PreparedTexts:
    """Documents to continue with text, checked and encoded.

    Attributes:
        tokenizer: of the model.
        prompts: (n,) int64 ids of each document.
        sampling: sampling settings of tokens.
        seeds: of the noise of each.
        max_new_tokens: maximum length of a text.
        beyond: what of it the model was not trained for, in words; empty where it was trained for all of it.
    """

    tokenizer: MultimodalTokenizer
    prompts: Sequence[Tensor]
    sampling: Sampling
    seeds: Sequence[int]
    max_new_tokens: int
    beyond: str

    def finish(self, ids: Tensor) -> str:
        """Return the text of generated ids (n,)."""
        return self.tokenizer.layout.decode_text(ids.tolist())


@dataclass(frozen=True)
class PreparedDocument:
    """A document to continue with text and blocks, checked and encoded.

    Attributes:
        tokenizer: of the model.
        writer: says what to do, piece by piece; it writes one document, once.
        beyond: what of it the model was not trained for, in words; empty where it was trained for all of it.
    """

    tokenizer: MultimodalTokenizer
    writer: Writer
    beyond: str

    def finish(self, segment: Segment) -> Any:
        """Return the text, picture or clip of a generated segment."""
        return self.tokenizer.decode_segment(segment)
