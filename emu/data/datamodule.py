"""The Lightning end of training data: what a recipe's `data:` names."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from emu.data.document_sources import DocumentSource
from emu.data.infilling import with_infill
from emu.data.loader import EvaluationLoader, PackedLoader, StepLoader, row_length_problems
from emu.data.mixture import Mixture, counts_per_step, mixture_problems
from emu.data.rows import row_length_hint
from emu.layouts import Layout
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class MixtureDataModule(LightningDataModule, ABC):
    """Packed rows of a mixture of sources; subclasses say what the sources are.

    A subclass takes these arguments and its own, passes these on, and defines `training_sources` and `vocabulary` (both are asked for
    after `prepare_data`, which is the place to download or to train tokenizers), and `validation_sources` where it has some.

    Args:
        documents_per_step: how many documents of each source a batch holds, by name of the source; with
            `trainer.accumulate_grad_batches` an optimizer step takes that many batches. Or how many in all, with `shares`.
        shares: with a number of documents in all, the share of each source in them, by name; they need not add up to 1.
        row_length: positions of a packed row; at least the longest document.
        seed: chooses the order of the documents and everything random in them.
        steps_per_epoch: optimizer steps of an epoch; only paces validation.
        validation_documents: how many documents validation packs together.
        num_workers: processes that prepare steps ahead.
        infill: share of the training documents in which cells of the last picture or clip are hidden and written after the others, so that
            the model learns to fill them in; see `emu/data/infilling.py`. The vocabulary needs the control `hole`.

    Attributes:
        sources_take_long: whether making the sources is work of its own, so that wrong numbers are reported before it; otherwise all
            problems are reported together.
    """

    sources_take_long = False

    def __init__(
        self,
        documents_per_step: dict[str, int] | int,
        row_length: int,
        *,
        shares: dict[str, float] | None = None,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        validation_documents: int = 32,
        num_workers: int = 0,
        infill: float = 0.0,
    ) -> None:
        super().__init__()
        self.documents_per_step = counts_per_step(documents_per_step, shares)
        self.row_length = row_length
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.validation_documents = validation_documents
        self.num_workers = num_workers
        self.infill = infill
        self._training: Mapping[str, DocumentSource] | None = None
        self._validation: Mapping[str, DocumentSource] | None = None

    def __repr__(self) -> str:
        batch = ", ".join(f"{count} {name}" for name, count in self.documents_per_step.items())
        return f"{type(self).__name__}({batch} a batch, rows of {self.row_length}, seed {self.seed})"

    __str__ = __repr__  # Lightning's own loads the data to print its size

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The table that the ids of the documents belong to."""

    @property
    def document_layout(self) -> Layout | None:
        """The layout that the documents are written in, which `infill` needs; None where it is not known."""
        return None

    @property
    def document_tokenizer(self) -> MultimodalTokenizer | None:
        """The tokenizers that made the documents, by whose words the rows of a model that training starts from are found; None where they
        are not known."""
        return None

    @abstractmethod
    def training_sources(self) -> Mapping[str, DocumentSource]:
        """Documents to train on, by name of the source."""

    def validation_sources(self) -> Mapping[str, DocumentSource]:
        """Held-out documents by name of the source; none by default."""
        return {}

    @property
    def free_options(self) -> tuple[str, ...]:
        """Names of the arguments that may change when a run is resumed: those that change nothing in the training batches."""
        return ("num_workers", "validation_documents")

    def save_pretrained(self, folder: Path) -> None:
        """Write what belongs beside the exported model, e.g. the tokenizers; nothing by default."""

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names that `source_ids` of the training batches count, in order."""
        return self._mixture().names

    @property
    def validation_names(self) -> tuple[str, ...]:
        """Names that `source_ids` of the validation batches count, in order."""
        return tuple(self._validation_sources())

    def problems(self, trainer: Any) -> list[str]:
        """What is wrong with the numbers, before anything is prepared; one sentence each."""
        found = []
        for name, least in (("row_length", 1), ("steps_per_epoch", 1), ("validation_documents", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                found.append(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 <= self.infill <= 1:
            found.append(f"infill is {self.infill}; expected a share in [0, 1]")
        return found

    def source_problems(self) -> list[str]:
        """What keeps these sources from being trained on, once they are prepared; one sentence each."""
        found = []
        for opened, is_training in ((self._training_sources, True), (self._validation_sources, False)):
            try:
                sources = opened()
            except (ValueError, FileNotFoundError) as error:
                found.append(str(error))
                continue
            found += self.mixing_problems(sources) if is_training else []
            found += row_length_problems(sources, self.row_length)
        return list(dict.fromkeys(found))

    def mixing_problems(self, sources: Mapping[str, DocumentSource]) -> list[str]:
        """What keeps the training sources from being mixed as asked for; one sentence each."""
        return mixture_problems(sources, self.documents_per_step)

    def longest_documents(self) -> dict[str, int]:
        """Tokens of the longest document of each source that knows them, by its name."""
        lengths: dict[str, int] = {}
        for sources in (self._training_sources(), self._validation_sources()):
            for name, source in sources.items():
                lengths[name] = max(lengths.get(name, 0), getattr(source, "max_length", None) or 0)
        return lengths

    def tell_row_use(self) -> None:
        """Log a hint at a better row length where rows would stay too empty."""
        hint = row_length_hint(self._mixture(), self.row_length)
        if hint is not None:
            logger.warning(hint)

    def train_dataloader(self) -> StepLoader:
        """Packed steps of this rank's share."""
        return PackedLoader(self._mixture(), self.row_length, **self._pace(), **self._shared())

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Every held-out document once."""
        sources = self._validation_sources()
        if not sources:
            return []
        return EvaluationLoader(
            sources, self.row_length, documents_per_batch=self.validation_documents, **self._shared()
        )

    def _mixture(self) -> Mixture:
        return Mixture(self._training_sources(), self.documents_per_step, self.seed)

    def _training_sources(self) -> Mapping[str, DocumentSource]:
        if self._training is None:
            self._training = self._with_infill(self.training_sources())
        return self._training

    def _with_infill(self, sources: Mapping[str, DocumentSource]) -> Mapping[str, DocumentSource]:
        if not self.infill:
            return sources
        layout = self.document_layout
        if layout is None:
            raise ValueError(
                f"infill is {self.infill}, and how the documents are written is not known; name data.tokenizer"
            )
        return with_infill(sources, layout, self.infill, self.row_length)

    def _validation_sources(self) -> Mapping[str, DocumentSource]:
        if self._validation is None:
            self._validation = self.validation_sources()
        return self._validation

    def _pace(self) -> dict[str, Any]:
        """How a training loader counts and prepares its batches."""
        accumulation = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "accumulation": accumulation,
            "num_workers": self.num_workers,
        }

    def _shared(self) -> dict[str, Any]:
        """Padding id and this process's share of the data; a strategy that also splits models knows its data-parallel share."""
        shared: dict[str, Any] = {"pad_token_id": self.vocabulary.control("pad")}
        if self.trainer is not None:
            share = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None)
            if share:
                shared |= {"rank": share["rank"], "world_size": share["num_replicas"]}
        return shared
