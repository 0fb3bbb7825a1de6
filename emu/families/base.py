"""What a family of checkpoints is: how its folders are recognised, read as ours, and written.

A family is one subclass of `Family` and a line in the table of `emu.families`. Nothing outside of it asks for its name: the commands,
`Emu` and `EmuForCausalLM` find the family of a folder and ask that.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.checkpoints.weights import Checkpoint
from emu.model_config import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import PLAIN, Templates
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import read_json
from emu_tokenizers.pixels.resize import Resize
from emu_tokenizers.vision.naming import config_from, weights_from

SPLITS = ("original", "transformers")
"""How text is cut before it becomes ids: as the model was trained, or as the folder's own files say."""

NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that old checkpoints carry and that are computed."""

Weights = Callable[[EmuConfig], Mapping[str, Tensor]]
"""Random weights of a transformer, by our names: `EmuForCausalLM` is above this room, so whoever writes a tiny model hands it in."""


class IncompleteTable(ValueError):
    """A folder has the ids of codes and not of every control: its language model can be read, its tokenizers cannot be used."""


class Family(ABC):
    """Checkpoints that one library or one set of scripts writes.

    Attributes:
        name: what users call it, e.g. in `emu convert --to NAME`.
        title: the same in words.
        layout: name of the layout of its documents.
        modalities: names of what its documents hold beside text.
        model_types: `model_type` in config.json of its language models.
        vision_types: the same of its vision tokenizers.
        renames: pattern -> replacement, as `re.sub` takes them, in order, from its names of tensors to ours.
        templates: templates by name, beside those of the other families.
        vision_repository: the hub's repository of its vision tokenizer, where that is not in the model's.
        also_called: names of families whose name stands for this one too, where only this one can hold a model.
    """

    name: str
    title: str
    layout: str
    modalities: Sequence[str] = ("image", "video")
    model_types: Sequence[str] = ()
    vision_types: Sequence[str] = ()
    renames: Mapping[str, str] = {}
    templates: Mapping[str, Templates] = {}
    vision_repository: str | None = None
    also_called: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def writes(self) -> bool:
        """Whether models can be converted to it."""
        return type(self).write is not Family.write

    @property
    def has_tiny(self) -> bool:
        """Whether a tiny model of it can be written."""
        return type(self).write_tiny is not Family.write_tiny

    def detect(self, config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
        """Whether a folder is of this family.

        Args:
            config: its config.json.
            tensor_names: gives the names of its tensors, none where they are pickled; it reads headers, so ask only when `config` does
                not say.
        """
        return config.get("model_type") in self.model_types

    @abstractmethod
    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """Our configuration of a language model, from its config.json and the table of ids where that is known.

        Raises:
            ValueError: the model has features that ours lacks, or sizes that do not fit each other.
        """

    def to_ours(self, name: str) -> str:
        """Our name of a tensor of the language model."""
        for pattern, replacement in self.renames.items():
            name = re.sub(pattern, replacement, name)
        return name

    def from_ours(self, name: str, alone: bool = False) -> str:
        """The family's name of our tensor, the inverse of `to_ours`.

        Args:
            name: ours.
            alone: whether the language model is written without tokenizers.
        """
        return name

    def of_language_model(self, name: str) -> bool:
        """Whether a tensor, by the family's name, is a weight of the language model."""
        return not NOT_WEIGHTS.search(name)

    def is_alone(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether a folder holds a language model that was saved without tokenizers."""
        return False

    @abstractmethod
    def vocabulary(self, folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
        """The table of ids, or None where a folder does not say.

        Raises:
            IncompleteTable: some controls have an id and others do not.
            ValueError: files contradict each other.
        """

    @abstractmethod
    def text(self, folder: Path, vocabulary: Vocabulary, split: str) -> TextTokenizer:
        """The text tokenizer of a folder; `split` is one of `SPLITS`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file is broken, or it has more ids than the vocabulary has for text.
        """

    def is_vision(self, folder: Path) -> bool:
        """Whether a folder holds a vision tokenizer of this family."""
        return model_type_of(folder) in self.vision_types

    def vision(self, folder: Path, allow_pickle: Iterable[str]) -> VisionTokenizer:
        """The vision tokenizer of a folder of its own.

        Raises:
            FileNotFoundError: its weights are missing.
            ValueError: a broken file, pickled weights that were not allowed, or tensors that do not fit.
        """
        return read_vision(folder, allow_pickle)

    def inner_vision(
        self, folder: Path, config: Mapping[str, Any], allow_pickle: Iterable[str]
    ) -> VisionTokenizer | None:
        """The vision tokenizer that the files of a language model hold; None where they hold none. Errors as in `vision`."""
        return None

    def resize(self, folder: Path, place: Path, factor: int, config: Mapping[str, Any]) -> Resize | None:
        """The rule for sizes of pictures.

        Args:
            folder: of the model.
            place: of its vision tokenizer.
            factor: pixels per code along each side.
            config: config.json of the model.
        """
        return None

    def default_templates(self, name: str) -> Templates:
        """What stands around a user's words unless they say otherwise; `name` is the model's."""
        return PLAIN

    def defaults(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Generation defaults of a model as its makers' scripts set them, by the names of `Emu.generate_images`."""
        return {}

    def holds(self, config: EmuConfig) -> bool:
        """Whether the family can say what this transformer computes; asked where one name stands for several families."""
        return True

    def write(self, folder: Path, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> None:
        """Write a model's files but for the weights of the transformer.

        Args:
            folder: empty.
            config: of the transformer.
            tokenizer: None for a language model alone.

        Raises:
            ValueError: the family cannot express the model; nothing was written then.
        """
        raise ValueError(f"models cannot be converted to {self.name!r}; it can only be read")

    def inner_tensors(self, tokenizer: MultimodalTokenizer) -> dict[str, Tensor]:
        """Tensors of the tokenizers that lie in the same files as the transformer's, by the family's names."""
        return {}

    def write_tiny(self, folder: Path, weights: Weights, *, alone: bool = False, **model: Any) -> None:
        """Write a small random model with the files, names and order of ids of a real one.

        Args:
            folder: to write to.
            weights: of the transformer.
            alone: leave out a vision tokenizer that the family keeps in a folder of its own.
            model: overrides fields of its configuration.
        """
        raise ValueError(f"there is no tiny model of {self.name!r}")


def refuse_other(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError where a config.json asks for something else than what `EmuForCausalLM` computes."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"config.json has {name} {config[name]!r}; EmuForCausalLM computes {value!r} only, so this model cannot be read"
            )


def louder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Larger weights than at the start of training, so that a random model's choices are far apart."""
    with torch.no_grad():
        return {name: tensor * 8 if tensor.ndim > 1 else tensor for name, tensor in weights.items()}


def model_type_of(folder: Path) -> str | None:
    """The `model_type` of a folder's config.json, None where it has none."""
    file = folder / "config.json"
    return read_json(file).get("model_type") if file.is_file() else None


def read_vision(folder: Path, allow_pickle: Iterable[str]) -> VisionTokenizer:
    """The vision tokenizer of a folder with config.json.

    Raises:
        FileNotFoundError: its weights are missing.
        ValueError: a broken file, pickled weights that were not allowed, or tensors that do not fit.
    """
    checkpoint = Checkpoint.open(folder, allow_pickle)
    if not checkpoint.pickled:
        return VisionTokenizer.from_pretrained(folder)
    return build_vision(read_json(folder / "config.json"), dict(checkpoint.tensors()), str(folder))


def build_vision(table: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> VisionTokenizer:
    """A tokenizer from its config.json and its tensors, under the names of any library.

    Args:
        table: config.json.
        state: name -> tensor.
        source: named in messages.

    Raises:
        ValueError: features that ours lacks, or tensors that are missing, too many, or of another shape.
    """
    tokenizer = VisionTokenizer(config_from(table)).eval()
    tokenizer.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    tokenizer.load_weights(weights_from(state), source)
    return tokenizer
