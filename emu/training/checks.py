"""What is looked at before work starts, and one message for everything that is wrong."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class CheckData(Callback):
    """Looks at the data once it is prepared, before the first step."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a ValueError that lists everything wrong with the sources."""
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "source_problems"):
            raise_problems(datamodule.source_problems())


def settings_problems(trainer: Trainer, module: LightningModule, datamodule: Any) -> list[str]:
    """What is wrong with the numbers of a configuration, before anything is prepared."""
    found = []
    if trainer.max_steps < 1 and trainer.max_epochs in (None, -1):
        found.append("nothing ends this run; set trainer.max_steps")
    for part in (module, datamodule):
        check = getattr(part, "problems", None)
        found += check(trainer) if callable(check) else []
    return found


def raise_problems(problems: list[str]) -> None:
    """Raise a ValueError that lists them, if there are any."""
    if problems:
        raise ValueError("this configuration cannot work:" + "".join(f"\n  - {problem}" for problem in problems))
