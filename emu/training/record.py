"""The record of a run's configuration: as it was written, and with every value resolved.

What comes from environment variables stays as it was written in both: what is secret does not reach the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from emu.configuration.resolving import Resolved
from emu.configuration.written import KeyPath
from emu.training.module_class import with_class
from emu_tokenizers.files import write_file

WRITTEN_FILE, RESOLVED_FILE = "config.yaml", "config.resolved.yaml"


class SaveConfig(SaveConfigCallback):
    """Writes both files of a run, each whole or not at all.

    Args:
        resolved: the interpolations of this run's recipes.
        class_path: of the module, where it is not the command's own.
        options: of Lightning.
    """

    def __init__(self, *arguments: Any, resolved: Resolved, class_path: str | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.resolved, self.class_path = resolved, class_path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them into the run's folder; how this part of the run was started is left out."""
        if trainer.is_global_zero and stage == "fit":
            self.config.ckpt_path, self.config.overwrite = None, False
            folder = Path(trainer.default_root_dir)
            found, resolved = values(self.parser, self.config), self.resolved
            for file, texts in ((WRITTEN_FILE, resolved.written), (RESOLVED_FILE, resolved.from_environment())):
                write_file(folder / file, _dumped(found, resolved, texts, self.class_path).encode())


def as_written(parser: ArgumentParser, config: Namespace, resolved: Resolved, class_path: str | None) -> str:
    """A recipe that repeats a run: every value, interpolations as they were written."""
    return _dumped(values(parser, config), resolved, resolved.written, class_path)


def comparable(parser: ArgumentParser, config: Namespace, resolved: Resolved, class_path: str) -> Any:
    """Every value as one can compare it with that of another run: what comes out of the environment by its digest alone."""
    digests = {
        path: f"{text} (sha256 {hashlib.sha256(json.dumps(resolved.values[path]).encode()).hexdigest()[:16]})"
        for path, text in resolved.from_environment().items()
        if path in resolved.values
    }
    found = resolved.put_back(values(parser, config), digests)
    return {**found, "model": {"class_path": class_path, **found["model"]}}


def values(parser: ArgumentParser, config: Namespace) -> Any:
    """Every option of a configuration and its resolved value, as plain tables, numbers and texts."""
    try:
        text = parser.dump(config, skip_none=False, skip_validation=True)
    except yaml.representer.RepresenterError:
        # Of a default that is a text and a member of an enumeration, as Lightning has them.
        text = parser.dump(_without_enumerations(config), skip_none=False, skip_validation=True)
    return yaml.safe_load(text)


def _without_enumerations(node: Any) -> Any:
    if isinstance(node, Enum):
        return node.value
    if isinstance(node, Namespace):
        return Namespace(**{name: _without_enumerations(value) for name, value in vars(node).items()})
    if isinstance(node, dict):
        return {name: _without_enumerations(value) for name, value in node.items()}
    return [_without_enumerations(value) for value in node] if isinstance(node, list) else node


def _dumped(values: Any, resolved: Resolved, texts: Mapping[KeyPath, str], class_path: str | None) -> str:
    return yaml.safe_dump(with_class(resolved.put_back(values, texts), class_path), sort_keys=False, allow_unicode=True)
