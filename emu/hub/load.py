"""A released model as a whole: transformer, tokenizers, templates and generation settings, from the folders people have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.repositories import PLACES, is_repository, model_name
from emu.families import Family, named_templates
from emu.families.detection import (
    find_family,
    is_vision_tokenizer,
    read_config,
    read_vision_tokenizer,
    vision_types,
)
from emu.families.language import base_of, check_folder, is_adapter, read_vocabulary
from emu.model import EmuConfig, EmuForCausalLM
from emu.model.model import tensor_shapes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.folders import VISION_FOLDER
from emu_tokenizers.pixels.resize import size_of_ratio

Pickles = str | Iterable[str]


@dataclass(frozen=True)
class Released:
    """A released model.

    Attributes:
        folder: where it was read from.
        model: the transformer.
        tokenizer: of documents.
        settings: generation defaults, by the names of `Emu.generate_images`.
    """

    folder: Path
    model: EmuForCausalLM
    tokenizer: MultimodalTokenizer
    settings: dict[str, Any] = field(default_factory=dict)


def is_released(path: str | Path) -> bool:
    """Whether a path is a folder in the format of another library, of an adapter, or a hub's repository."""
    folder = Path(path)
    if is_adapter(folder):
        return True
    if folder.is_dir():
        ours_or_vision = {EmuConfig.model_type, *vision_types()}
        return (folder / "config.json").is_file() and read_config(folder).get("model_type") not in ours_or_vision
    return is_repository(str(path))


def read_released(
    path: str | Path,
    *,
    vision_tokenizer: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    templates: str | Templates | None = None,
    split: str = "original",
    allow_pickle: Pickles = (),
    **options: Any,
) -> Released:
    """Read a model in any known format.

    Args:
        path: folder or hub repository (owner/name, or owner/name@revision) of the transformer, or of an adapter (LoRA) whose base is
            where it was.
        vision_tokenizer: its folder or repository, where it is not in or beside the model's folder; for a repository of Emu3 or Emu3.5
            the one that its makers keep it in, at its newest revision; name it with one to pin it.
        text_tokenizer: the same for the text tokenizer.
        templates: what stands around a user's words; by default what the family and the folder's name say.
        split: how text is cut before it becomes ids, one of `emu.families.base.SPLITS`.
        allow_pickle: names of pickled files that may be read.
        options: of `EmuForCausalLM.from_pretrained` (`dtype`, `device_map`, ...), and where a repository is fetched: `revision` (of the
            transformer's), `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: a folder, a shard or a tokenizer is missing.
        ValueError: an unknown architecture, a broken file, or parts that do not belong together.
    """
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    places = {name: options.pop(name) for name in PLACES if name in options}
    check_folder(find_model_folder(path, files=allow_pickle, **places), allow_pickle, tensor_shapes)
    tokenizer = read_tokenizer(
        path,
        vision_tokenizer=vision_tokenizer,
        text_tokenizer=text_tokenizer,
        templates=templates,
        split=split,
        allow_pickle=allow_pickle,
        **places,
    )
    folder = find_model_folder(path, files=allow_pickle, **places)
    model = EmuForCausalLM.from_pretrained(folder, allow_pickle=allow_pickle, **options)
    if not Path(path).is_dir():
        model.name_or_path = str(path)
    folder = base_of(folder) if is_adapter(folder) else folder
    settings = generation_settings(folder, tokenizer, new_task=templates is not None)
    return Released(folder, model.eval(), tokenizer, settings)


def read_tokenizer(
    path: str | Path,
    *,
    vision_tokenizer: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    templates: str | Templates | None = None,
    split: str = "original",
    allow_pickle: Pickles = (),
    **places: Any,
) -> MultimodalTokenizer:
    """The tokenizers of a model in any known format, joined; arguments and errors as in `read_released`."""
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    folder = find_model_folder(path, files=allow_pickle, **places)
    others = {name: value for name, value in places.items() if name != "revision"}
    if is_adapter(folder):
        if (folder / TOKENIZER_FILE).is_file():
            return MultimodalTokenizer.from_pretrained(folder)
        path = folder = base_of(folder)
    family = find_family(folder)
    if (folder / TOKENIZER_FILE).is_file():
        if text_tokenizer is not None:
            raise ValueError(
                f"{folder} has its own text tokenizer, which the model was trained with; leave text_tokenizer out"
            )
        tokenizer = _read_own(folder, vision_tokenizer, allow_pickle, others)
        return tokenizer if templates is None else tokenizer.with_templates(_templates(templates, family, folder))
    config = read_config(folder)
    vocabulary = read_vocabulary(folder, family, config)
    if vocabulary is None:
        raise ValueError(
            f"{folder} does not say which ids are controls and codes (no vocabulary_map, no tokenizer.json); it holds a language model "
            "only: open it with EmuForCausalLM.from_pretrained"
        )
    words_from = folder if text_tokenizer is None else find_model_folder(text_tokenizer, **others)
    text = family.text(words_from, vocabulary, split)
    if vision_tokenizer is None and not Path(path).is_dir():
        vision_tokenizer = family.vision_repository
    vision, place = _vision(family, folder, vision_tokenizer, allow_pickle, others)
    check_codebook(vision, vocabulary, place, folder)
    tokenizer = MultimodalTokenizer(
        text,
        vision,
        layout=family.layout,
        modalities=family.modalities,
        vocabulary=vocabulary,
        resize=family.resize(folder, place, vision.spatial_factor, config),
    )
    return tokenizer.with_templates(_templates(templates, family, folder))


def check_codebook(vision: VisionTokenizer, vocabulary: Vocabulary, place: Path, folder: Path) -> None:
    """Whether a vision tokenizer has the codes that a vocabulary has ids for.

    Raises:
        ValueError: it has another number; the message names both folders and both numbers.
    """
    count = vocabulary.range("vision")[1]
    if vision.codebook_sizes != (count,):
        raise ValueError(
            f"the vision tokenizer in {place} has {' + '.join(map(str, vision.codebook_sizes))} codes, the model in {folder} has ids for "
            f"{count}; give the vision tokenizer that the model was trained with: vision_tokenizer="
        )


def _read_own(
    folder: Path, vision_tokenizer: str | Path | None, allow_pickle: list[str], places: dict[str, Any]
) -> MultimodalTokenizer:
    tokenizer = MultimodalTokenizer.from_pretrained(folder)
    if vision_tokenizer is None:
        return tokenizer
    place = find_model_folder(vision_tokenizer, files=allow_pickle, **places)
    found = read_vision_tokenizer(place, allow_pickle).fingerprint
    saved = tokenizer.fingerprints.get("vision")
    if found != saved:
        raise ValueError(
            f"the vision tokenizer in {place} has fingerprint {found}, the model in {folder} was trained with {saved} "
            f"({folder / TOKENIZER_FILE}); leave vision_tokenizer out to use the folder's own"
        )
    return tokenizer


def _vision(
    family: Family, folder: Path, given: str | Path | None, allow_pickle: list[str], places: dict[str, Any]
) -> tuple[VisionTokenizer, Path]:
    """The vision tokenizer and the folder that it was read from."""
    inside = family.inner_vision(folder, read_config(folder), allow_pickle) if given is None else None
    if inside is not None:
        return inside, folder
    place = find_vision_folder(folder) if given is None else find_model_folder(given, files=allow_pickle, **places)
    return read_vision_tokenizer(place, allow_pickle), place


def find_vision_folder(folder: Path) -> Path:
    """The vision tokenizer's folder inside a model's folder or beside it.

    Raises:
        FileNotFoundError: there is none, or several.
    """
    for places in ([folder / VISION_FOLDER], sorted(folder.absolute().parent.iterdir())):
        found = [place for place in places if is_vision_tokenizer(place)]
        if len(found) == 1:
            return found[0]
    raise FileNotFoundError(
        f"{len(found)} vision tokenizers beside {folder} ({[place.name for place in found]}); expected one, e.g. a folder "
        "Emu3-VisionTokenizer, or name it: vision_tokenizer="
    )


def _templates(given: str | Templates | None, family: Family, folder: Path) -> Templates:
    if given is None:
        return family.default_templates(model_name(folder))
    if isinstance(given, Templates):
        return given
    known = named_templates()
    if given not in known:
        raise ValueError(f"no templates {given!r}; known are {sorted(known)}, or pass emu.templates.Templates(...)")
    return known[given]


def generation_settings(folder: str | Path, tokenizer: MultimodalTokenizer, *, new_task: bool) -> dict[str, Any]:
    """Generation defaults of a released model, as its own scripts set them, by the names of `Emu.generate_images`.

    Args:
        folder: of the model.
        tokenizer: whose templates name a task.
        new_task: whether those templates were asked for now, so that their settings win over the ones that the folder was saved with.
    """
    folder = Path(folder)
    found = find_family(folder).defaults(model_name(folder), read_config(folder))
    return found | task_settings(tokenizer) if found or new_task else found


def task_settings(tokenizer: MultimodalTokenizer) -> dict[str, Any]:
    """Generation defaults that the task of a tokenizer's templates asks for, by the names of `Emu.generate_images`."""
    settings = tokenizer.templates.settings
    found: dict[str, Any] = {name: settings[name] for name in ("guidance_scale", "top_k") if name in settings}
    if "image_area" in settings and tokenizer.vision is not None:
        found["size"] = list(size_of_ratio("4:3", int(settings["image_area"]), tokenizer.vision.spatial_factor))
    return found
