"""A released model as a whole: transformer, tokenizers, templates and generation settings, from the folders people have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.repositories import PLACES, is_repository, model_name
from emu.checkpoints.weights import Checkpoint
from emu.families.detection import VISION_TYPES, detect, read_config
from emu.families.emu3 import templates as known
from emu.families.emu3.config import ORIGINAL_DEFAULTS
from emu.families.emu3.text import read_text_tokenizer
from emu.families.emu3.vocabulary import read_vocabulary
from emu.families.language import base_of, check_folder, is_adapter
from emu.families.transformers_emu3.names import VISION_PREFIX
from emu.families.vision_folder import build, is_vision_tokenizer, read_vision_tokenizer
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.files import read_json
from emu_tokenizers.pixels.resize import Resize, size_of_ratio

Pickles = str | Iterable[str]

VISION_REPOSITORIES = {"emu3": "BAAI/Emu3-VisionTokenizer", "emu3.5": "BAAI/Emu3.5-VisionTokenizer"}
"""Where the vision tokenizer of a hub's model is."""


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
        return (folder / "config.json").is_file() and read_config(folder).get("model_type") not in (
            "emu",
            *VISION_TYPES,
        )
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
        templates: what stands around a user's words; by default what the format and the folder's name tell.
        split: see `read_text_tokenizer`.
        allow_pickle: names of pickled files that may be read.
        options: of `EmuForCausalLM.from_pretrained` (`dtype`, `device_map`, ...), and where a repository is fetched: `revision` (of the
            transformer's), `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: a folder, a shard or a tokenizer is missing.
        ValueError: an unknown architecture, a broken file, or parts that do not belong together.
    """
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    places = {name: options.pop(name) for name in PLACES if name in options}
    check_folder(find_model_folder(path, files=allow_pickle, **places), allow_pickle)
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
    settings = generation_settings(folder)
    if templates is not None or detect(folder) != "emu":
        settings |= task_settings(tokenizer)
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
    form = detect(folder)
    if form == "emu":
        if text_tokenizer is not None:
            raise ValueError(
                f"{folder} has its own text tokenizer, which the model was trained with; leave text_tokenizer out"
            )
        tokenizer = _read_own(folder, vision_tokenizer, allow_pickle, others)
        return tokenizer if templates is None else tokenizer.with_templates(_templates(templates, form, folder))
    vocabulary = read_vocabulary(folder, form, read_config(folder))
    if vocabulary is None:
        raise ValueError(
            f"{folder} does not tell which ids are controls and codes (no vocabulary_map, no tokenizer.json); it holds a language model "
            "only: open it with EmuForCausalLM.from_pretrained"
        )
    text = read_text_tokenizer(
        folder if text_tokenizer is None else find_model_folder(text_tokenizer, **others), vocabulary, split
    )
    if vision_tokenizer is None and not Path(path).is_dir():
        vision_tokenizer = VISION_REPOSITORIES.get(form)
    vision, place = _vision(folder, vision_tokenizer, allow_pickle, others)
    check_codebook(vision, vocabulary, place, folder)
    newer = form == "emu3.5"
    words = _templates(templates, form, folder)
    tokenizer = MultimodalTokenizer(
        text,
        vision,
        layout="emu3.5" if newer else "emu3",
        modalities=("image",) if newer else ("image", "video"),
        vocabulary=vocabulary,
        resize=_resize(folder, place, vision, newer),
    )
    return tokenizer.with_templates(words)


def check_codebook(vision: VisionTokenizer, vocabulary: Vocabulary, place: Path, folder: Path) -> None:
    """Whether a vision tokenizer has the codes that a vocabulary has ids for.

    Raises:
        ValueError: it has not; the message names both folders and both numbers.
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
    folder: Path, given: str | Path | None, allow_pickle: list[str], places: dict[str, Any]
) -> tuple[VisionTokenizer, Path]:
    config = read_config(folder)
    if given is None and config.get("vq_config") is not None:
        checkpoint = Checkpoint.open(folder, allow_pickle)
        inside = dict(checkpoint.tensors(name for name in checkpoint.entries if VISION_PREFIX.match(name)))
        return build(config["vq_config"], inside, str(folder)), folder
    place = find_vision_folder(folder) if given is None else find_model_folder(given, files=allow_pickle, **places)
    return read_vision_tokenizer(place, allow_pickle), place


def find_vision_folder(folder: Path) -> Path:
    """The vision tokenizer's folder inside a model's folder or beside it.

    Raises:
        FileNotFoundError: there is none, or several.
    """
    for places in ([folder / "vision_tokenizer"], sorted(folder.absolute().parent.iterdir())):
        found = [place for place in places if is_vision_tokenizer(place)]
        if len(found) == 1:
            return found[0]
    raise FileNotFoundError(
        f"{len(found)} vision tokenizers beside {folder} ({[place.name for place in found]}); expected one, e.g. a folder "
        "Emu3-VisionTokenizer, or name it: vision_tokenizer="
    )


def _templates(given: str | Templates | None, form: str, folder: Path) -> Templates:
    if isinstance(given, Templates):
        return given
    if given is None:
        given = (
            "emu3.5-t2i" if form == "emu3.5" else "emu3-stage1" if "stage1" in model_name(folder).lower() else "emu3"
        )
    if given not in known.NAMED:
        raise ValueError(
            f"no templates {given!r}; known are {sorted(known.NAMED)}, or pass emu.templates.Templates(...)"
        )
    return known.NAMED[given]


def _resize(folder: Path, place: Path, vision: VisionTokenizer, newer: bool) -> Resize:
    if newer:
        return Resize(vision.spatial_factor, area=int(read_config(folder).get("image_area", 1024 * 1024)))
    table: dict[str, Any] = {}
    for file in (
        place / "preprocessor_config.json",
        folder / "preprocessor_config.json",
        folder / "processor_config.json",
    ):
        if file.is_file():
            table = read_json(file)
            table = table.get("image_processor", table)
            break
    bounds = Resize(vision.spatial_factor)
    return Resize(bounds.factor, int(table.get("min_pixels", bounds.least)), int(table.get("max_pixels", bounds.most)))


def task_settings(tokenizer: MultimodalTokenizer) -> dict[str, Any]:
    """Generation defaults that the task of a tokenizer's templates asks for, by the names of `Emu.generate_images`."""
    settings = tokenizer.templates.settings
    found: dict[str, Any] = {name: settings[name] for name in ("guidance_scale", "top_k") if name in settings}
    if "image_area" in settings and tokenizer.vision is not None:
        found["size"] = list(size_of_ratio("4:3", int(settings["image_area"]), tokenizer.vision.spatial_factor))
    return found


def generation_settings(folder: str | Path) -> dict[str, Any]:
    """Generation defaults of a released model, as its own scripts set them."""
    folder = Path(folder)
    form = detect(folder)
    if form == "emu":
        return {}
    if form == "emu3.5":
        image = "image" in model_name(folder).lower()
        return {"size": [55 * 16, 73 * 16], "guidance_scale": 5.0 if image else 2.0, "top_k": 5120}
    area = int(read_config(folder).get("image_area", ORIGINAL_DEFAULTS["image_area"]))
    return {
        "size": list(size_of_ratio("1:1", area)),
        "guidance_scale": 3.0,
        "top_k": 2048,
        "negative_prompt": known.NEGATIVE_PROMPT,
    }
