"""Token shards as the data of a recipe: what `emu tokenize` wrote, mixed and packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_only

from emu.data.block_mixture import BlockMixture, block_problems
from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource, MeasuredSource
from emu.data.infilling import InfillShards
from emu.data.loader import StepLoader
from emu.data.mixing_weights import weight_problems
from emu.data.row_loader import RowLoader
from emu.data.shards import TokenShards, differing, what_is_trained
from emu.layouts import Layout
from emu.model_settings import write_settings
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.stopping import say
from emu.trained import infill_task
from emu.vocabulary import Vocabulary

log = logging.getLogger("emu")


class ShardData(MixtureDataModule):
    """Folders of token shards, mixed and packed into rows.

    With `rows_per_step` every step has equally many rows, packed across thousands of documents, and sources are mixed by their `weights` in
    the tokens. With `documents_per_step` every step has equally many documents of each source, in as many rows as they need.

    Args:
        sources: folder of each source, by name.
        documents_per_step: how many documents of each source a batch holds; or how many in all, with `shares`.
        row_length: positions of a packed row.
        rows_per_step: rows of a batch over all ranks, instead of `documents_per_step`; with `trainer.accumulate_grad_batches` an optimizer
            step takes that many batches.
        weights: with `rows_per_step`, the share of each source in the tokens, in any unit: `{a: 0.7, b: 0.3}`. Or a list of such tables,
            each from an optimizer step on: `[{from_step: 0, a: 0.9, b: 0.1}, {from_step: 1000, a: 0.5, b: 0.5}]`. Left out, all sources
            are gone through equally often.
        shares: of each source in the documents of a batch, where `documents_per_step` is one number.
        validation: folders of held-out documents, by name.
        caption_dropout: share of the documents whose caption is left out, so that the model learns to draw without one (for guidance).
        long_documents: what becomes of documents of more tokens than a row: "refuse" says how many there are and ends the run, "drop"
            leaves them out, "cut" makes pieces of whole segments of them.
        tokenizer: folder of the tokenizers that made the shards, which is checked before the first step; they are written beside the
            trained model, with the tasks, sizes and lengths that the shards hold.
        generation: settings that are written beside the trained model for whoever draws with it, by the names of `emu.json`:
            `{guidance_scale: 3.0}`; those left out are the library's.
        verify: check every byte of the shards before the first step; otherwise each mebibyte is checked when it is read first.
        options: see `MixtureDataModule`: seed, steps_per_epoch, validation_documents, num_workers, infill.
    """

    def __init__(
        self,
        sources: dict[str, str],
        documents_per_step: dict[str, int] | int | None = None,
        row_length: int = 2048,
        *,
        rows_per_step: int | None = None,
        weights: dict[str, float] | list[dict[str, float]] | None = None,
        shares: dict[str, float] | None = None,
        validation: dict[str, str] | None = None,
        caption_dropout: float = 0.0,
        long_documents: Literal["refuse", "drop", "cut"] = "refuse",
        tokenizer: str | None = None,
        generation: dict[str, Any] | None = None,
        verify: bool = False,
        **options: Any,
    ) -> None:
        super().__init__({} if documents_per_step is None else documents_per_step, row_length, shares=shares, **options)
        self.rows_per_step, self.weights = rows_per_step, weights
        self.folders = dict(sources)
        self.validation_folders = dict(validation or {})
        self.caption_dropout = caption_dropout
        self.long_documents = long_documents
        self.tokenizer = tokenizer
        self.generation = dict(generation or {})
        self.verify = verify

    def __repr__(self) -> str:
        if self.rows_per_step is None:
            return super().__repr__()
        return f"{type(self).__name__}({self.rows_per_step} rows of {self.row_length} a batch, seed {self.seed})"

    __str__ = __repr__  # see MixtureDataModule

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the first source; `source_problems` reports others that have another."""
        return next(iter(self._opened().values())).vocabulary

    @property
    def document_layout(self) -> Layout | None:
        """See `MixtureDataModule`."""
        return None if self.tokenizer is None else self._tokenizer.layout

    @property
    def document_tokenizer(self) -> MultimodalTokenizer | None:
        """See `MixtureDataModule`."""
        return None if self.tokenizer is None else self._tokenizer

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
        return (
            *super().free_options,
            "validation",
            "tokenizer",
            "generation",
            "verify",
            *(("sources",) if known else ()),
        )

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`; so are numbers of a step that do not agree."""
        found = super().problems(trainer)
        if not self.folders:
            found.append("data.sources is empty; name a folder of token shards")
        if self.rows_per_step is None:
            if not self.documents_per_step:
                found.append("data.rows_per_step is missing; say how many rows a step has (or documents_per_step)")
            if self.weights is not None:
                found.append("data.weights go with rows_per_step; with documents_per_step give counts, or shares")
            return found
        if self.documents_per_step:
            found.append("data.rows_per_step and documents_per_step are both given; give one of them")
        if self.rows_per_step < 1:
            found.append(f"rows_per_step is {self.rows_per_step}; expected 1 or more")
        return found + ([] if self.weights is None else weight_problems(self.weights, self.folders))

    def mixing_problems(self, sources: Mapping[str, DocumentSource]) -> list[str]:
        """See `MixtureDataModule`."""
        if self.rows_per_step is None:
            return super().mixing_problems(sources) if self.documents_per_step else []  # the numbers say it already
        if self.weights is not None and weight_problems(self.weights, self.folders):
            return []
        try:
            return block_problems(cast(Mapping[str, MeasuredSource], sources), self.weights)
        except (ValueError, FileNotFoundError) as error:  # lengths are read for it, and a file of them may be damaged
            return [str(error)]

    @property
    def source_names(self) -> tuple[str, ...]:
        """See `MixtureDataModule`."""
        return super().source_names if self.rows_per_step is None else self._rows().names

    def tell_row_use(self) -> None:
        """Log how full rows are and how many documents are left out; with `documents_per_step` a hint where rows stay too empty."""
        if self.rows_per_step is None:
            super().tell_row_use()
            return
        plan = self._rows().plan(0)
        rows, documents = len(plan.starts) - 1, len(plan.numbers) + plan.left_out
        use = plan.tokens / (rows * self.row_length)
        say(
            f"{documents:,} documents are packed into {rows:,} rows of {self.row_length} tokens, {use:.1%} full; "
            f"{plan.left_out / documents:.2%} of the documents are left out of their epoch"
        )

    def train_dataloader(self) -> StepLoader:
        """See `MixtureDataModule`."""
        if self.rows_per_step is None:
            return super().train_dataloader()
        return RowLoader(self._rows(), self.rows_per_step, **self._pace(), **self._shared())

    def _rows(self) -> BlockMixture:
        """The rows of training by number; weights change at optimizer steps, which take several batches."""
        assert self.rows_per_step is not None
        rows_per_step = self.rows_per_step * self._pace()["accumulation"]
        sources = cast(Mapping[str, MeasuredSource], self._training_sources())
        return BlockMixture(sources, self.row_length, rows_per_step, self.weights, self.seed)

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
        sources = self._training_sources().values()
        trained, frequent = what_is_trained([_shards(source) for source in sources], factors)
        filled = [source for source in sources if isinstance(source, InfillShards)]
        if filled:
            tasks = dict.fromkeys(infill_task(name) for source in filled for name in source.modalities)
            longest = max(source.max_length or 0 for source in filled)
            trained = replace(trained, tasks=(*trained.tasks, *tasks), context=longest)
        write_settings(folder, {**frequent, **self.generation}, tokenizer.fingerprints, trained)

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
        """Every folder of an option; what is wrong with any of them is raised together."""
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
        outcome = source.describe_long_documents()
        if outcome:
            _warn(f"source {name!r}: {outcome}")
        return source

    def _opened(self) -> dict[str, TokenShards]:
        opened = {**self._training_sources(), **{f"validation {k}": v for k, v in self._validation_sources().items()}}
        return {name: _shards(source) for name, source in opened.items()}


def _shards(source: DocumentSource) -> TokenShards:
    """The token shards that documents come from."""
    return source.source if isinstance(source, InfillShards) else cast(TokenShards, source)


@rank_zero_only
def _warn(message: str) -> None:
    log.warning(message)
