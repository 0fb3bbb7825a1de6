"""The record of a run's configuration: as it was written, and with every value resolved."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from emu.configuration.resolving import Resolved
from emu_tokenizers.files import write_file

WRITTEN_FILE, RESOLVED_FILE = "config.yaml", "config.resolved.yaml"


class SaveConfig(SaveConfigCallback):
    """Writes both files, each whole or not at all.

    Args:
        resolved: the interpolations of this run's recipes.
        options: of Lightning.
    """

    def __init__(self, *arguments: Any, resolved: Resolved, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.resolved = resolved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them into the run's folder; how this part of the run was started is no part of them."""
        if trainer.is_global_zero and stage == "fit":
            self.config.ckpt_path, self.config.overwrite = None, False
            folder = Path(trainer.default_root_dir)
            write_file(folder / WRITTEN_FILE, as_written(self.parser, self.config, self.resolved).encode())
            write_file(folder / RESOLVED_FILE, as_resolved(self.parser, self.config, self.resolved).encode())


def as_written(parser: ArgumentParser, config: Namespace, resolved: Resolved) -> str:
    """A recipe that repeats a run: every value, interpolations as they were written."""
    return _dumped(resolved.put_back(values(parser, config), resolved.written))


def as_resolved(parser: ArgumentParser, config: Namespace, resolved: Resolved) -> str:
    """Every value as a number or a text, save those from environment variables: what is secret does not reach the disk."""
    return _dumped(resolved.put_back(values(parser, config), resolved.from_environment()))


def comparable(parser: ArgumentParser, config: Namespace, resolved: Resolved) -> Any:
    """Every value as one can compare it with that of another run: what comes out of the environment by its digest alone."""
    digests = {
        path: f"{text} (sha256 {hashlib.sha256(json.dumps(resolved.values[path]).encode()).hexdigest()[:16]})"
        for path, text in resolved.from_environment().items()
        if path in resolved.values
    }
    return resolved.put_back(values(parser, config), digests)


def values(parser: ArgumentParser, config: Namespace) -> Any:
    """Every option of a configuration and its resolved value, as plain tables, numbers and texts."""
    return yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))


def _dumped(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
