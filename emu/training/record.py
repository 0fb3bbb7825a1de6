"""The record of a run's configuration."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from emu_tokenizers.files import replacing


class SaveConfig(SaveConfigCallback):
    """Saves the merged configuration, whole or not at all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml` into the run's folder; how this part of the run was started is no part of it."""
        if trainer.is_global_zero and stage == "fit":
            self.config.ckpt_path, self.config.overwrite = None, False
            with replacing(Path(trainer.default_root_dir) / "config.yaml") as temporary:
                self.parser.save(self.config, temporary, skip_none=False, overwrite=True, multifile=False)
