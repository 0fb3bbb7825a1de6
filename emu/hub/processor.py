"""`AutoProcessor` for folders of this library: documents to batches of ids, and ids back, as transformers' processors do it.

    import emu.hub  # registers it
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor([[image, "Describe it."]])
    model.generate(**inputs, max_new_tokens=64)

The vision tokenizer is loaded with it, since pictures become ids here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from emu.hub.load import read_tokenizer
from emu.multimodal_tokenizer import MultimodalTokenizer


class EmuProcessor:
    """Documents (lists of `str`, PIL images, `Video`) to left-padded ids with a mask.

    Args:
        tokenizer: of the model.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, tokenizer: MultimodalTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(
        self, documents: Sequence[Any], grid: tuple[int, int] | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Prompts of a batch.

        Args:
            documents: one list of items each; a `str` alone is a document of one item.
            grid: (height, width) in codes; with it prompts end in the header of an image, without it text is to follow.
            return_tensors: "pt".

        Returns:
            input_ids (B, S) int64, left-padded, and attention_mask (B, S).

        Raises:
            ValueError: no documents, or tensors of another kind asked for.
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors is {return_tensors!r}; this processor makes torch tensors, "pt"')
        if isinstance(documents, str) or not len(documents):
            raise ValueError("documents should be a list with one document or more, e.g. [[image, 'Describe it.']]")
        rows = [self._prompt(document, grid) for document in documents]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.vocabulary.control("pad"))
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, length - len(row) :], mask[place, length - len(row) :] = row, 1
        return BatchFeature({"input_ids": ids, "attention_mask": mask})

    def _prompt(self, document: Any, grid: tuple[int, int] | None) -> Tensor:
        if grid is None:
            return self.tokenizer.question(document)
        return self.tokenizer.prompt(document if isinstance(document, list | tuple) else [document], "image", grid)

    def decode(self, ids: Tensor | Sequence[int]) -> list[Any]:
        """Items of a sequence: text, pictures, clips; see `MultimodalTokenizer.decode`."""
        return self.tokenizer.decode(ids)

    def decode_text(self, ids: Tensor | Sequence[int]) -> str:
        """The text of a sequence; controls and codes in it are left out."""
        first, count = self.tokenizer.vocabulary.text
        listed = torch.as_tensor(ids).tolist()
        return self.tokenizer.layout.decode_text([index for index in listed if first <= index < first + count])

    def batch_decode(self, rows: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """The texts of generated rows; see `decode_text`."""
        return [self.decode_text(row) for row in rows]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizers."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> EmuProcessor:
        """Read the tokenizers of a model of any family.

        Args:
            path: folder or hub repository.
            options: of `emu.hub.load.read_tokenizer`; others, which transformers passes to every processor, are left out.

        Raises:
            FileNotFoundError, ValueError: see `emu.hub.load.read_tokenizer`.
        """
        known = ("vision_tokenizer", "text_tokenizer", "templates", "split", "allow_pickle")
        return cls(read_tokenizer(path, **{name: options[name] for name in known if name in options}))
