"""Token shards as the data of a recipe: what `emu tokenize` wrote, mixed and packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.data.datamodule import MixtureDataModule
from emu.data.shards import TokenShards
from emu.data.sources import DocumentSource
from emu.vocabulary import Vocabulary


class ShardData(MixtureDataModule):
    """Folders of token shards, mixed by fixed numbers of documents per step.

    Args:
        sources: folder of each source, by name.
        documents_per_step: how many documents of each source a step holds.
        row_length: positions of a packed row.
        validation: folders of held-out documents, by name.
        caption_dropout: share of the documents whose caption is left out, so that the model learns to draw without one (for guidance).
        tokenizer: folder of the tokenizers that made the shards; they are written beside the trained model.
        options: see `MixtureDataModule`: seed, steps_per_epoch, validation_documents, num_workers.
    """

    def __init__(
        self,
        sources: dict[str, str],
        documents_per_step: dict[str, int],
        row_length: int,
        *,
        validation: dict[str, str] | None = None,
        caption_dropout: float = 0.0,
        tokenizer: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(documents_per_step, row_length, **options)
        self.folders = dict(sources)
        self.validation_folders = dict(validation or {})
        self.caption_dropout = caption_dropout
        self.tokenizer = tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the first source; `source_problems` tells when others have another."""
        return next(iter(self._opened().values())).vocabulary

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """The shards to train on."""
        return {name: TokenShards(folder, self.caption_dropout) for name, folder in self.folders.items()}

    def validation_sources(self) -> Mapping[str, DocumentSource]:
        """The held-out shards, with their captions."""
        return {name: TokenShards(folder) for name, folder in self.validation_folders.items()}

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`."""
        return super().problems(trainer) + (
            [] if self.folders else ["data.sources is empty; name a folder of token shards"]
        )

    def source_problems(self) -> list[str]:
        """See `MixtureDataModule`; shards that other tokenizers made are refused too."""
        found = super().source_problems()
        first, *others = self._opened().items()
        for name, source in others:
            differing = {
                kind for kind in first[1].fingerprints if source.fingerprints.get(kind) != first[1].fingerprints[kind]
            }
            if differing:
                theirs = {
                    kind: (first[1].fingerprints[kind], source.fingerprints.get(kind)) for kind in sorted(differing)
                }
                found.append(f"sources {first[0]!r} and {name!r} were made by different tokenizers: {theirs}")
        return found

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizers beside the model."""
        if self.tokenizer is not None:
            from emu.multimodal_tokenizer import MultimodalTokenizer

            MultimodalTokenizer.from_pretrained(self.tokenizer).save_pretrained(folder)

    def _opened(self) -> dict[str, TokenShards]:
        opened = {**self._training_sources(), **{f"validation {k}": v for k, v in self._validation_sources().items()}}
        return {name: source for name, source in opened.items() if isinstance(source, TokenShards)}
