"""Token shards as the data of a recipe: what `emu tokenize` wrote, mixed and packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource
from emu.data.shards import TokenShards, differing, what_is_trained
from emu.model_settings import write_settings
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import Vocabulary

log = logging.getLogger("emu")


class ShardData(MixtureDataModule):
    """Folders of token shards, mixed by fixed numbers of documents per step.

    Args:
        sources: folder of each source, by name.
        documents_per_step: how many documents of each source a step holds; or how many in all, with `shares`.
        row_length: positions of a packed row.
        shares: of each source in the documents of a step, where `documents_per_step` is one number.
        validation: folders of held-out documents, by name.
        caption_dropout: share of the documents whose caption is left out, so that the model learns to draw without one (for guidance).
        long_documents: what becomes of documents of more tokens than a row: "refuse" says how many there are and ends the run, "drop"
            leaves them out, "cut" makes pieces of whole segments of them.
        tokenizer: folder of the tokenizers that made the shards, which is checked before the first step; they are written beside the
            trained model, with the tasks, sizes and lengths that the shards hold.
        verify: check every byte of the shards before the first step; otherwise each mebibyte is checked when it is read first.
        options: see `MixtureDataModule`: seed, steps_per_epoch, validation_documents, num_workers.
    """

    def __init__(
        self,
        sources: dict[str, str],
        documents_per_step: dict[str, int] | int,
        row_length: int,
        *,
        shares: dict[str, float] | None = None,
        validation: dict[str, str] | None = None,
        caption_dropout: float = 0.0,
        long_documents: Literal["refuse", "drop", "cut"] = "refuse",
        tokenizer: str | None = None,
        verify: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(documents_per_step, row_length, shares=shares, **options)
        self.folders = dict(sources)
        self.validation_folders = dict(validation or {})
        self.caption_dropout = caption_dropout
        self.long_documents = long_documents
        self.tokenizer = tokenizer
        self.verify = verify

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the first source; `source_problems` tells when others have another."""
        return next(iter(self._opened().values())).vocabulary

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """The shards to train on."""
        return self._open_all("sources", self.folders, self.caption_dropout)

    def validation_sources(self) -> Mapping[str, DocumentSource]:
        """The held-out shards, with their captions."""
        return self._open_all("validation", self.validation_folders)

    @property
    def free_options(self) -> tuple[str, ...]:
        """See `MixtureDataModule`; folders may move where their content is known by its `identity`."""
        known = all(getattr(source, "identity", None) is not None for source in self._training_sources().values())
        return (*super().free_options, "validation", "tokenizer", "verify", *(("sources",) if known else ()))

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`."""
        return super().problems(trainer) + (
            [] if self.folders else ["data.sources is empty; name a folder of token shards"]
        )

    def source_problems(self) -> list[str]:
        """See `MixtureDataModule`; shards that other tokenizers made, and damaged ones where all are verified, are refused too."""
        found = super().source_problems()
        try:
            (name, first), *others = self._opened().items()
        except (ValueError, FileNotFoundError):  # which the problems say already
            return found
        for other, source in others:
            between = differing(first, source)
            if between:
                found.append(f"sources {name!r} and {other!r} were made by different tokenizers: {between}")
        found += self._tokenizer_problems()
        if self.verify:
            found += [problem for source in self._opened().values() for problem in source.damage()]
        return found

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizers beside the model, and what the shards say that it was trained for (`emu.json`)."""
        if self.tokenizer is None:
            return
        tokenizer = self._tokenizer
        tokenizer.save_pretrained(folder)
        factors = {} if tokenizer.vision is None else {"vision": tokenizer.vision.spatial_factor}
        sources = [source for source in self._training_sources().values() if isinstance(source, TokenShards)]
        trained, frequent = what_is_trained(sources, factors)
        write_settings(folder, frequent, tokenizer.fingerprints, trained)

    @cached_property
    def _tokenizer(self) -> MultimodalTokenizer:
        assert self.tokenizer is not None
        return MultimodalTokenizer.from_pretrained(self.tokenizer)

    def _tokenizer_problems(self) -> list[str]:
        """What keeps the tokenizers from being those of the shards, training and validation."""
        if self.tokenizer is None:
            return []
        try:
            ours = self._tokenizer.fingerprints
        except (FileNotFoundError, ValueError) as error:
            return [f"data.tokenizer {self.tokenizer!r} cannot be read: {error}"]
        return [
            f"source {name!r} ({source.folder}) was made with the {kind} {theirs}, data.tokenizer {self.tokenizer!r} has "
            f"{ours.get(kind, 'none')}; name the tokenizers that made the shards, or tokenise again"
            for name, source in self._opened().items()
            for kind, theirs in source.fingerprints.items()
            if ours.get(kind) != theirs
        ]

    def _open_all(
        self, option: str, folders: Mapping[str, str], caption_dropout: float = 0.0
    ) -> dict[str, DocumentSource]:
        """Every folder of an option; what is wrong with any of them is told together."""
        kind = "" if option == "sources" else f"{option} "
        opened: dict[str, DocumentSource] = {}
        problems = []
        for name, folder in folders.items():
            try:
                opened[name] = self._open(f"{kind}{name}", folder, caption_dropout)
            except (FileNotFoundError, ValueError) as error:
                problems.append(f"data.{option} {name!r}: {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return opened

    def _open(self, name: str, folder: str, caption_dropout: float = 0.0) -> TokenShards:
        source = TokenShards(folder, caption_dropout, row_length=self.row_length, long_documents=self.long_documents)
        told = source.told_of_long_documents()
        if told:
            _tell(f"source {name!r}: {told}")
        return source

    def _opened(self) -> dict[str, TokenShards]:
        opened = {**self._training_sources(), **{f"validation {k}": v for k, v in self._validation_sources().items()}}
        return {name: source for name, source in opened.items() if isinstance(source, TokenShards)}


@rank_zero_only
def _tell(message: str) -> None:
    log.warning(message)
