"""`emu convert SRC DST --to FAMILY`: convert a model from one checkpoint family to another, or average several (--average).

emu convert Emu3-Gen emu3-gen --to emu
emu convert RUN/model averaged --to emu --average RUN/checkpoints/*.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from emu.checkpoints.bundled import find_model_folder
from emu.families import FAMILIES, named_templates
from emu.families.base import SPLITS
from emu.hub.convert import ConversionSource, convert, open_source, targets
from emu.hub.load import generation_settings
from emu.model_settings import write_settings
from emu.pipeline import GenerationDefaults
from emu.pipeline.model_folder import read_defaults
from emu.tokenizer_folder import TOKENIZER_FILE
from emu_tokenizers.files import LOCK_FILE, holding, holds_others, new_folder

CONFIG_FILE = "config.json"
"""File that every model's folder has."""
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    words = argparse.ArgumentParser(
        prog="emu convert",
        description="Convert a model between Emu's format and those of released families, or average checkpoints.",
    )
    words.add_argument("source", help="folder or hub repository of the transformer")
    words.add_argument("target", type=Path, help="output folder; its files appear once all are complete")
    words.add_argument(
        "--to",
        required=True,
        choices=targets(),
        help="; ".join(f"{name}: {FAMILIES[name].title}" for name in targets())
        + " (its predecessor's name is accepted too)",
    )
    words.add_argument("--dtype", choices=DTYPES, help="dtype of the transformer's weights; unchanged by default")
    words.add_argument("--shard-size", default="5GB", help='maximum file size, e.g. "5GB" (default)')
    words.add_argument("--revision", help="branch, tag or commit, if the source is a hub repository")
    words.add_argument("--vision-tokenizer", help="vision tokenizer folder, if not in or beside the source")
    words.add_argument("--text-tokenizer", help="text tokenizer folder, likewise")
    words.add_argument(
        "--templates",
        choices=sorted(named_templates()),
        help="templates for a user's prompt; by default the model's own",
    )
    words.add_argument("--split", choices=SPLITS, default="original", help="how text is split before tokenization")
    words.add_argument(
        "--allow-pickle", action="append", default=[], metavar="FILE", help="allow reading this pickled file"
    )
    words.add_argument("--language-model-only", action="store_true", help="leave the tokenizers out")
    words.add_argument(
        "--average",
        nargs="+",
        metavar="MODEL",
        help="average the transformer's weights over these folders and training checkpoints; everything else is the source's",
    )
    words.add_argument("--overwrite", action="store_true", help="replace the target if it is a model's folder")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0.

    Raises:
        FileExistsError: the target exists; with --overwrite, it holds something other than a model.
        FileNotFoundError, ValueError: the source cannot be read, or the target cannot express it.
    """
    given = parser().parse_args(arguments)
    if _is_taken(given.target) and not given.overwrite:
        raise FileExistsError(f"{given.target} exists; choose another folder, or replace it with --overwrite")
    if _is_taken(given.target) and holds_others(given.target, [CONFIG_FILE]):
        raise FileExistsError(
            f"{given.target} holds files and is no model's folder (it has no {CONFIG_FILE}), so --overwrite would remove what is not a "
            "model; choose another folder"
        )
    if given.target.is_file():
        raise NotADirectoryError(f"{given.target} is a file; name a folder")
    source = open_source(
        given.source,
        vision_tokenizer=given.vision_tokenizer,
        text_tokenizer=given.text_tokenizer,
        templates=given.templates,
        split=given.split,
        allow_pickle=given.allow_pickle,
        language_model_only=given.language_model_only,
        revision=given.revision,
    )
    if given.average:
        from emu.training.averaging import averaged  # loads Lightning

        source = averaged(source, given.average)
    with _reserved(given.target), new_folder(given.target) as partial:
        dtype = getattr(torch, given.dtype) if given.dtype else None
        convert(source, partial, given.to, dtype=dtype, max_shard_size=given.shard_size, progress=True)
        if source.tokenizer is not None and (partial / TOKENIZER_FILE).is_file():
            folder = find_model_folder(given.source, revision=given.revision)
            _write_settings(partial, folder, source, given.templates is not None)
    print(f"{given.source} ({source.family.name}) -> {given.target} ({given.to})")
    return 0


def _is_taken(target: Path) -> bool:
    """Whether the target holds more than the lock of a conversion that is under way or was killed."""
    return target.exists() and not (target.is_dir() and [entry.name for entry in target.iterdir()] == [LOCK_FILE])


@contextmanager
def _reserved(target: Path) -> Iterator[None]:
    """Hold the target, so that no second conversion writes it meanwhile; a target that was not written is removed."""
    with holding(target, "emu convert"):
        try:
            yield
        finally:
            if not _is_taken(target):
                (target / LOCK_FILE).unlink(missing_ok=True)
                with suppress(OSError):  # someone else begins to use it
                    target.rmdir()


def _write_settings(target: Path, folder: Path, source: ConversionSource, new_task: bool) -> None:
    """Write `emu.json`: generation defaults, the fingerprints of the tokenizers, and what the model was trained for."""
    assert source.tokenizer is not None
    defaults, trained = read_defaults(folder, source.tokenizer)
    known = defaults.to_dict() | generation_settings(folder, source.tokenizer, new_task=new_task)
    settings = GenerationDefaults.from_dict(known).to_dict()
    write_settings(target, settings, source.tokenizer.fingerprints, trained)
