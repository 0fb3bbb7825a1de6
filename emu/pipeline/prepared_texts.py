"""A call that writes, between its parts: prompts, which anyone may continue, and how ids become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from emu.generation import Sampling
from emu.multimodal_tokenizer import MultimodalTokenizer


@dataclass(frozen=True)
class PreparedTexts:
    """Documents to continue with text, checked and encoded.

    Attributes:
        tokenizer: of the model.
        prompts: (n,) int64 ids of each document.
        sampling: how tokens are drawn.
        seeds: of the noise of each.
        max_new_tokens: where text ends that does not end by itself.
        beyond: what of it the model was not trained for, in words; empty where it was trained for all of it.
    """

    tokenizer: MultimodalTokenizer
    prompts: Sequence[Tensor]
    sampling: Sampling
    seeds: Sequence[int]
    max_new_tokens: int
    beyond: str

    def finish(self, ids: Tensor) -> str:
        """The text of ids (n,) that were written."""
        return self.tokenizer.layout.decode_text(ids.tolist())
