"""Steps of a constant number of rows: rows by number for one rank, blocks planned ahead, and the loader over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch.utils.data import Dataset

from emu.data.block_mixture import BlockMixture, BlockPlan
from emu.data.loader import StepLoader, row_length_problems, shares
from emu.data.mixture import Reference
from emu.packing import Packed, fill_rows


class PlansAhead:
    """Plans of blocks, of which the next one is made in a thread while the present one is trained on.

    Args:
        plan: the plan of a block; a pure function, so that who calls it changes nothing.
    """

    def __init__(self, plan: Callable[[int], BlockPlan]) -> None:
        self._plan = plan
        self._process = os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._made: dict[int, Future[BlockPlan]] = {}

    def __call__(self, block: int) -> BlockPlan:
        """The plan of a block, made now where it was not made ahead."""
        if self._process != os.getpid():  # threads do not live on in forked workers
            self._process, self._thread, self._made = os.getpid(), None, {}
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="emu-plan")
        # A step may reach from one block into the next, so that two are in use at once.
        self._made = {number: made for number, made in self._made.items() if block - 1 <= number <= block + 1}
        for number in (block, block + 1):
            if number not in self._made:
                self._made[number] = self._thread.submit(self._plan, number)
        return self._made[block].result()

    def __reduce__(self) -> tuple[type[PlansAhead], tuple[Callable[[int], BlockPlan]]]:
        return PlansAhead, (self._plan,)


class RowSteps(Dataset):
    """The rows of each batch that belong to one rank, by number of the batch.

    Args:
        mixture: rows by number.
        plan: the plan of a block of the mixture.
        rows_per_batch: over all ranks.
        pad_token_id: id of the padding.
        rank: which share of the rows, every `world_size`-th one from row `rank` of the batch on.
        world_size: number of shares; batches are filled up with empty rows to a multiple of it.
    """

    def __init__(
        self,
        mixture: BlockMixture,
        plan: Callable[[int], BlockPlan],
        rows_per_batch: int,
        *,
        pad_token_id: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.mixture, self.plan, self.rows_per_batch, self.pad_token_id = mixture, plan, rows_per_batch, pad_token_id
        self.rank, self.world_size = rank, world_size

    def references(self, batch: int) -> list[Reference]:
        """Addresses of the documents of a batch, over all ranks."""
        first = batch * self.rows_per_batch
        return [document for row in range(first, first + self.rows_per_batch) for document in self._of_row(row)]

    def _of_row(self, row: int) -> list[Reference]:
        block, place = self.mixture.locate(row)
        return self.mixture.references(self.plan(block), place)

    def __getitem__(self, batch: int) -> Packed:
        first = batch * self.rows_per_batch
        rows = [self._of_row(row) for row in range(first + self.rank, first + self.rows_per_batch, self.world_size)]
        rows += [[]] * (-(-self.rows_per_batch // self.world_size) - len(rows))
        numbers = {name: number for number, name in enumerate(self.mixture.names)}
        return fill_rows(
            [[self.mixture.document(reference) for reference in row] for row in rows],
            self.mixture.row_length,
            source_ids=[[numbers[reference.source] for reference in row] for row in rows],
            pad_token_id=self.pad_token_id,
        )


class RowLoader(StepLoader):
    """Batches of a constant number of rows; the global batch is the same for any number of ranks and workers.

    Args:
        mixture: rows by number.
        rows_per_batch: rows of a batch, over all ranks.
        steps_per_epoch: optimizer steps of a pass; only paces validation and the trainer's epochs.
        accumulation: batches of one optimizer step.
        pad_token_id: id of the padding.
        num_workers: processes that prepare batches ahead; 0 prepares each in the calling process.
        rank: share of the rows; taken from `torch.distributed` when None.
        world_size: number of shares; likewise.

    Raises:
        ValueError: a count is below 1, or a source can have documents longer than a row.
    """

    def __init__(
        self,
        mixture: BlockMixture,
        rows_per_batch: int,
        *,
        steps_per_epoch: int = 1000,
        accumulation: int = 1,
        pad_token_id: int = 0,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        problems = row_length_problems(mixture.sources, mixture.row_length)
        if rows_per_batch < 1:
            problems.append(f"rows_per_step is {rows_per_batch}; expected 1 or more")
        if problems:
            raise ValueError("; ".join(problems))
        super().__init__(
            None,
            steps_per_epoch=steps_per_epoch,
            accumulation=accumulation,
            num_workers=num_workers,
            identity={**mixture.identity, "rows_per_step": rows_per_batch},
        )
        self.mixture, self.rows_per_batch, self.pad_token_id = mixture, rows_per_batch, pad_token_id
        self._share = (rank, world_size)
        self._plan = PlansAhead(mixture.plan)  # kept over passes

    def batches(self) -> RowSteps:
        """This rank's rows of every batch, by number of the batch."""
        rank, world_size = shares(*self._share)
        return RowSteps(
            self.mixture,
            self._plan,
            self.rows_per_batch,
            pad_token_id=self.pad_token_id,
            rank=rank,
            world_size=world_size,
        )
