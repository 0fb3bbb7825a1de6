"""Packed batches whose position is one integer.

Batch s is a pure function of (seed, s): ranks take rows of it, workers take batches of it, and resuming means to start counting elsewhere.
An optimizer step takes one batch or, where gradients are accumulated, several; passes and saved positions hold whole steps.
The loaders here are what Lightning saves and restores (`state_dict`, `load_state_dict`); turn `use_distributed_sampler` off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from emu.data.document_sources import DocumentSource, source_identities
from emu.data.mixture import Mixture, Reference
from emu.packing import Packed, fill_rows, pack, pad_plan, plan_rows
from emu_tokenizers.weight_checks import check_identity


class PackedSteps(Dataset):
    """The packed rows of each step that belong to one rank, by number of the step.

    Args:
        mixture: what each step holds.
        row_length: number of positions of a row.
        pad_token_id: id of the padding.
        rank: which share of the rows, every `world_size`-th one from row `rank` on.
        world_size: number of shares; steps are filled up with empty rows to a multiple of it.
    """

    def __init__(
        self, mixture: Mixture, row_length: int, *, pad_token_id: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.mixture = mixture
        self.row_length = row_length
        self.pad_token_id = pad_token_id
        self.rank = rank
        self.world_size = world_size

    def references(self, step: int) -> list[Reference]:
        """Addresses of the documents of a step, over all ranks."""
        return self.mixture.references(step)

    def __getitem__(self, step: int) -> Packed:
        references = self.mixture.references(step)
        lengths = [self.mixture.length(reference) for reference in references]
        built = {i: self.mixture.document(references[i]) for i, length in enumerate(lengths) if length is None}
        known = [len(built[i]) if length is None else length for i, length in enumerate(lengths)]
        try:
            plan = pad_plan(plan_rows(known, self.row_length), self.world_size)[self.rank :: self.world_size]
        except ValueError as error:
            raise ValueError(f"step {step}, documents of {dict(self.mixture.documents_per_step)}: {error}") from error
        numbers = {name: i for i, name in enumerate(self.mixture.names)}
        return fill_rows(
            [[built[i] if i in built else self.mixture.document(references[i]) for i in row] for row in plan],
            self.row_length,
            source_ids=[[numbers[references[i].source] for i in row] for row in plan],
            pad_token_id=self.pad_token_id,
        )


class StepLoader:
    """Endless batches in passes of whole optimizer steps, each batch a pure function of its number.

    Every pass of iteration goes from the current batch to the next multiple of `steps_per_epoch * accumulation`, so that an interrupted
    pass goes on where it stopped.

    Args:
        batches: `batches[s]` is batch s.
        steps_per_epoch: optimizer steps of a pass; only paces validation and the trainer's epochs.
        accumulation: batches of one optimizer step.
        num_workers: processes that prepare batches ahead; 0 prepares each in the calling process.
        identity: plain settings that say which batches these are; a position saved under others is refused.

    Attributes:
        step: number of the next batch.
        step_parts: all batches of the optimizer step that the last batch belongs to, in order: how much each of them weighs in the step is
            known before the first one is trained on.
        waited: seconds in which the trainer has waited for batches.

    Raises:
        ValueError: `steps_per_epoch` or `accumulation` is below 1.
    """

    def __init__(
        self,
        batches: Any,
        *,
        steps_per_epoch: int = 1000,
        accumulation: int = 1,
        num_workers: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("steps_per_epoch", steps_per_epoch), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        self.steps_per_epoch = steps_per_epoch
        self.accumulation = accumulation
        self.num_workers = num_workers
        self.identity = {
            **(identity or {}),
            "steps_per_epoch": steps_per_epoch,
            "accumulate_grad_batches": accumulation,
        }
        self.step = 0
        self.step_parts: tuple[Any, ...] = ()
        self.waited = 0.0
        self._batches = batches

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[Any]:
        end = (self.step // len(self) + 1) * len(self)
        prepared = step_batches(self.batches(), range(self.step, end), self.num_workers)
        while self.step < end:
            began = time.perf_counter()
            self.step_parts = tuple(islice(prepared, self.accumulation))
            self.waited += time.perf_counter() - began
            for batch in self.step_parts:
                self.step += 1  # before the batch is trained on: a checkpoint written after it goes on with the next
                yield batch

    def batches(self) -> Any:
        """The batches by number."""
        return self._batches

    def references(self, batch: int) -> list[Reference]:
        """Addresses of the documents of a batch, over all ranks; none where the batches do not say."""
        known = getattr(self.batches(), "references", None)
        return list(known(batch)) if callable(known) else []

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must not change under it; within an optimizer step it is the step's first batch."""
        return {"step": self.step - self.step % self.accumulation, **self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            ValueError: the state was saved under another identity, e.g. another seed, whose steps are other batches.
        """
        check_identity(state, self.identity)
        self.step = int(state["step"])


class PackedLoader(StepLoader):
    """Packed rows step by step; the global batch of a step is the same for any number of ranks and workers.

    Args:
        mixture: what each batch holds.
        row_length: number of positions of a row.
        steps_per_epoch: optimizer steps of a pass; only paces validation and the trainer's epochs.
        accumulation: batches of one optimizer step.
        pad_token_id: id of the padding.
        num_workers: processes that prepare batches ahead; 0 prepares each in the calling process.
        rank: share of the rows; taken from `torch.distributed` when None.
        world_size: number of shares; likewise.

    Raises:
        ValueError: a length or a count is below 1, or a source can have documents longer than a row.
    """

    def __init__(
        self,
        mixture: Mixture,
        row_length: int,
        *,
        steps_per_epoch: int = 1000,
        accumulation: int = 1,
        pad_token_id: int = 0,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        problems = row_length_problems(mixture.sources, row_length)
        if problems:
            raise ValueError("; ".join(problems))
        super().__init__(
            None,
            steps_per_epoch=steps_per_epoch,
            accumulation=accumulation,
            num_workers=num_workers,
            identity=mixture_identity(mixture, row_length),
        )
        self.mixture = mixture
        self.row_length = row_length
        self.pad_token_id = pad_token_id
        self._rank = rank
        self._world_size = world_size

    def batches(self) -> PackedSteps:
        """This rank's rows of every step, by number of the step."""
        rank, world_size = shares(self._rank, self._world_size)
        return PackedSteps(
            self.mixture, self.row_length, pad_token_id=self.pad_token_id, rank=rank, world_size=world_size
        )


class EvaluationLoader:
    """Every document of some sources once, in order, packed a fixed number at a time.

    Args:
        sources: documents by name of the source; `source_ids` of the batches count them in this order.
        row_length: number of positions of a row.
        documents_per_batch: documents packed together.
        pad_token_id: id of the padding.
        rank: this process takes every `world_size`-th batch from `rank` on; taken from `torch.distributed` when None.
        world_size: likewise. Batches are padded with empty ones to a multiple of it, so that all ranks see equally many.

    Raises:
        ValueError: a source can have documents longer than a row, or `documents_per_batch` is below 1.
    """

    def __init__(
        self,
        sources: Mapping[str, DocumentSource],
        row_length: int,
        *,
        documents_per_batch: int = 32,
        pad_token_id: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        problems = row_length_problems(sources, row_length)
        if documents_per_batch < 1:
            problems.append(f"documents_per_batch is {documents_per_batch}; expected 1 or more")
        if problems:
            raise ValueError("; ".join(problems))
        self.sources = dict(sources)
        self.row_length = row_length
        self.documents_per_batch = documents_per_batch
        self.pad_token_id = pad_token_id
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        num_batches = -(-sum(len(source) for source in self.sources.values()) // self.documents_per_batch)
        return -(-num_batches // shares(self._rank, self._world_size)[1])

    def __iter__(self) -> Iterator[Packed]:
        everything = [
            (number, name, i) for number, name in enumerate(self.sources) for i in range(len(self.sources[name]))
        ]
        rank, world_size = shares(self._rank, self._world_size)
        for batch in range(rank, len(self) * world_size, world_size):
            some = everything[batch * self.documents_per_batch : (batch + 1) * self.documents_per_batch]
            yield pack(
                [self.sources[name].document(i, 0) for _, name, i in some],
                self.row_length,
                source_ids=[number for number, _, _ in some],
                pad_token_id=self.pad_token_id,
            )


def mixture_identity(mixture: Mixture, row_length: int) -> dict[str, Any]:
    """What decides which rows a batch holds: seed, counts, length of the rows, and each source's `identity` and number of documents."""
    identity: dict[str, Any] = {"seed": mixture.seed, "row_length": row_length}
    identity["documents_per_step"] = dict(mixture.documents_per_step)
    return identity | source_identities(mixture.sources)


def step_batches(steps: Dataset, numbers: range, num_workers: int) -> Iterator[Any]:
    """Items of `steps` in order, prepared ahead by worker processes where there are any."""
    if num_workers == 0:
        return (steps[number] for number in numbers)
    return iter(DataLoader(steps, batch_size=None, sampler=numbers, num_workers=num_workers))


def shares(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world_size) as given, or as `torch.distributed` has it, or (0, 1) in a single process."""
    if rank is not None and world_size is not None:
        return rank, world_size
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def row_length_problems(sources: Mapping[str, DocumentSource], row_length: int) -> list[str]:
    """One sentence for each source whose longest document does not fit into a row."""
    problems = [] if row_length >= 1 else [f"row_length is {row_length}; expected 1 or more"]
    for name, source in sources.items():
        longest = getattr(source, "max_length", None)
        if longest is not None and longest > row_length:
            plainly = f"documents of up to {longest} tokens, more than row_length {row_length}"
            problems.append(
                f"source {name!r} has {source.too_long(row_length) if hasattr(source, 'too_long') else plainly}"
            )
    return problems
