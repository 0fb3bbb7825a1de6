"""Times of taking a batch and of training on it, for a trainer that is built from a recipe."""

import time

from lightning.pytorch.profilers import Profiler

NEXT, STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"
"""What Lightning calls taking a batch and training on it."""


class ProcessorTime(Profiler):
    """Processor and wall time of taking batches and of training on them."""

    measured: dict[str, list[tuple[float, float]]] = {}

    def start(self, action_name: str) -> None:
        """Begin one of them."""
        if action_name in (NEXT, STEP):
            self.measured.setdefault(action_name, []).append((time.process_time(), time.perf_counter()))

    def stop(self, action_name: str) -> None:
        """End it."""
        if action_name in (NEXT, STEP):
            processor, wall = self.measured[action_name].pop()
            self.measured[action_name].append((time.process_time() - processor, time.perf_counter() - wall))

    def summary(self) -> str:
        """Nothing: the numbers are read."""
        return ""
