"""Processes of a run that do not come, or that end before the others: a message in the place of a traceback or of a wait without end."""

from __future__ import annotations

import errno
import os
import sys
from threading import Timer

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

MEETING_SECONDS = 600.0
"""In which all processes must have started."""
SIGNS = ("gloo/transport", "Connection reset by peer", "Connection closed by peer", "Broken pipe")
"""What messages of a broken exchange say that have no class of their own."""


class MeetRanks(Callback):
    """Ends this process where the others have not come in time; to be started before the trainer waits for them."""

    def __init__(self) -> None:
        self._timer: Timer | None = None

    def start(self, trainer: Trainer) -> None:
        """Begin to wait, where there are others."""
        if trainer.world_size > 1:
            self._timer = Timer(MEETING_SECONDS, _give_up, [trainer.global_rank, trainer.world_size])
            self._timer.daemon = True
            self._timer.start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """They have come."""
        if self._timer is not None:
            self._timer.cancel()


def lost_rank(error: RuntimeError, world_size: int) -> ConnectionError | None:
    """The error to raise in the place of that of a broken exchange between processes; None where it is another one."""
    said = str(error)
    if world_size < 2 or not (isinstance(error, dist.DistError) or any(sign in said for sign in SIGNS)):
        return None
    text = (
        f"another of the {world_size} processes has ended or does not answer; look at what it said last, and go on with --ckpt_path last "
        f"({said.splitlines()[0][:200]})"
    )
    return ConnectionError(errno.ECONNRESET, text)


def _give_up(rank: int, world_size: int) -> None:
    text = (
        f"process {rank} of {world_size} has waited {MEETING_SECONDS:.0f} s for the others; start as many as trainer.devices times "
        "trainer.num_nodes says, with the same MASTER_ADDR and MASTER_PORT, or lower those"
    )
    print(f"emu: {text}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits in code that takes no exception
