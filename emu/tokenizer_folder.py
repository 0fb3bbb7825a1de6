"""The folder of a `MultimodalTokenizer`: the table that joins its tokenizers, the codecs, and the templates.

multimodal_tokenizer.json           layout, modalities, vocabulary, fingerprints; class paths of codecs other than "vision"
text_tokenizer/  NAME_tokenizer/    the text tokenizer, and each codec by its name (vision_tokenizer/)
templates.json                      templates and rule for sizes, where a model has any
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from emu.modalities import MODALITIES
from emu.templates import PLAIN, Templates
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import read_json, write_json
from emu_tokenizers.pixels.resize import Resize

TOKENIZER_FILE = "multimodal_tokenizer.json"
TEMPLATES_FILE = "templates.json"
CODEC_FOLDER = "{}_tokenizer"
"""Folder of a codec in that of a model, by the codec's name."""
FORMAT_VERSION = 1
VISION = "vision"
"""Name of the codec of pictures and clips."""


class TokenizerTable(NamedTuple):
    """What `multimodal_tokenizer.json` says.

    Attributes:
        layout: name of the layout.
        modalities: names of modalities.
        vocabulary: the table of ids.
        fingerprints: of the vocabulary, the text tokenizer and each codec, by name.
        class_paths: of codecs other than "vision", by name.
    """

    layout: str
    modalities: list[str]
    vocabulary: Vocabulary
    fingerprints: dict[str, str]
    class_paths: dict[str, str]


def write_table(
    folder: Path,
    *,
    layout: str,
    modalities: list[str],
    vocabulary: Vocabulary,
    fingerprints: Mapping[str, str],
    codecs: Mapping[str, Any],
) -> None:
    """Write `multimodal_tokenizer.json`; `codecs` holds the codecs themselves, by name."""
    table: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "modalities": modalities,
        "vocabulary": vocabulary.to_dict(),
        "fingerprints": dict(fingerprints),
    }
    classes = {name: type(codec) for name, codec in codecs.items() if name != VISION}
    if classes:
        table["codecs"] = {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in classes.items()}
    write_json(folder / TOKENIZER_FILE, table)


def read_table(folder: Path) -> TokenizerTable:
    """What `write_table` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is of another version; the message names it.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {TOKENIZER_FILE}; expected a folder written by MultimodalTokenizer.save_pretrained"
        )
    table = read_json(file)
    version = table.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version!r}, this library reads {FORMAT_VERSION}")
    try:
        return TokenizerTable(
            table["layout"],
            [str(name) for name in table["modalities"]],
            Vocabulary.from_dict(table["vocabulary"]),
            dict(table["fingerprints"]),
            dict(table.get("codecs", {})),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error}); save it again") from error


def write_codecs(folder: Path, codecs: Mapping[str, Any]) -> None:
    """Write each codec into a folder of its own."""
    for name, codec in codecs.items():
        codec.save_pretrained(folder / CODEC_FOLDER.format(name))


def read_codecs(folder: Path, table: TokenizerTable, classes: Mapping[str, Any]) -> dict[str, Any]:
    """The codecs that a folder was saved with.

    A class comes from the caller or from a registered modality, never from the path in the table, which serves messages alone: an import
    that a stranger's file asks for could run anything.

    Args:
        folder: of the tokenizer.
        table: what it says.
        classes: codec's name -> class, beside those that modalities name.

    Raises:
        FileNotFoundError: the folder of a codec is missing.
        ValueError: nobody names the class of a codec.
    """
    known = [MODALITIES.find(name) for name in table.modalities]
    named = {modality.codec: modality.codec_class for modality in known if modality.codec and modality.codec_class}
    classes = {**named, **classes}
    if VISION in table.fingerprints and VISION not in classes:
        from emu_tokenizers import (
            VisionTokenizer,  # takes seconds to load, which those who name a lighter class do without
        )

        classes[VISION] = VisionTokenizer
    codecs = {}
    for name in table.fingerprints:
        if name in ("vocabulary", "text"):
            continue
        if name not in classes:
            raise ValueError(
                f"{folder / TOKENIZER_FILE} names the codec {name!r} ({table.class_paths.get(name)}), whose class no modality there names; "
                f"pass it, codecs={{{name!r}: ...}}, or set codec_class of its modality"
            )
        place = folder / CODEC_FOLDER.format(name)
        if not place.is_dir():
            raise FileNotFoundError(f"{folder} lacks {place.name}/, the folder of its codec {name!r}; copy it again")
        codecs[name] = classes[name].from_pretrained(place)
    return codecs


def write_templates(folder: Path, templates: Templates, resize: Resize | None) -> None:
    """Write `templates.json` where there is anything to say, and remove that of an earlier tokenizer where there is not."""
    file = folder / TEMPLATES_FILE
    if (templates, resize) == (PLAIN, None):
        file.unlink(missing_ok=True)
        return
    write_json(file, {"templates": asdict(templates), "resize": None if resize is None else asdict(resize)})


def read_templates(folder: Path) -> tuple[Templates, Resize | None]:
    """Templates and rule for sizes of a folder; plain ones and no rule where it has no file of them.

    Raises:
        ValueError: the file cannot be read; the message names it.
    """
    file = folder / TEMPLATES_FILE
    if not file.is_file():
        return PLAIN, None
    table = read_json(file)
    try:
        resize = None if table["resize"] is None else Resize(**table["resize"])
        return replace(PLAIN, **table["templates"]), resize
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no templates and resize rule ({error}); save the model again") from error
