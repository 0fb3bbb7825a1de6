"""Training data that belongs to a trained model: its tokenizers read it, and what is exported keeps its settings.

data:
  class_path: emu.data.model_data.PromptData
  init_args: {model: emu3-gen, prompts: prompts.txt, size: [720, 720], documents_per_step: 1, row_length: 512}
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import find_model_folder
from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource, ListSource
from emu.documents import TokenDocument
from emu.layouts import Layout
from emu.lines import BadLine, Line, read_lines, shown
from emu.model_settings import read_settings, write_settings
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.trained import UNKNOWN, Trained
from emu.vocabulary import Vocabulary

CARRIED = ("worlds.json",)
"""Files of a model's folder that say what it was trained on, for its suites: the exported model keeps them."""


class ModelData(MixtureDataModule):
    """Documents of a model that is trained further; subclasses give `training_sources`.

    Args:
        model: folder of the model that training starts from, whose tokenizers read the documents.
        documents_per_step, row_length, options: see `MixtureDataModule`.
    """

    def __init__(
        self, model: str, documents_per_step: dict[str, int] | int, row_length: int = 256, **options: Any
    ) -> None:
        super().__init__(documents_per_step, row_length, **options)
        self.model = model

    @cached_property
    def tokenizer(self) -> MultimodalTokenizer:
        """That of the model's folder."""
        return MultimodalTokenizer.from_pretrained(self.model)

    @property
    def vocabulary(self) -> Vocabulary:
        """See `MixtureDataModule`."""
        return self.tokenizer.vocabulary

    @property
    def document_layout(self) -> Layout | None:
        """See `MixtureDataModule`."""
        return self.tokenizer.layout

    @property
    def free_options(self) -> tuple[str, ...]:
        """See `MixtureDataModule`; the model's folder may move."""
        return (*super().free_options, "model")

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`; so is a folder that cannot be read."""
        found = super().problems(trainer)
        try:
            self.tokenizer  # noqa: B018 (reads the folder)
        except (FileNotFoundError, ValueError) as error:
            found.append(f"data.model: {error}")
        return found

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizers, and what the model's folder says of its generation and training, beside the exported model."""
        self.tokenizer.save_pretrained(folder)
        begun = find_model_folder(self.model)
        self.write_carried(begun, folder)
        settings = read_settings(begun)
        generation, trained = ({}, UNKNOWN) if settings is None else (settings.generation, settings.trained)
        known = trained if trained == UNKNOWN else self.trained(trained)
        write_settings(folder, generation, self.tokenizer.fingerprints, known)

    def write_carried(self, begun: Path, folder: Path) -> None:
        """Copy what else the model's folder says of its training."""
        for name in CARRIED:
            if (begun / name).is_file():
                shutil.copy(begun / name, folder / name)

    def trained(self, begun: Trained) -> Trained:
        """What the model is trained for in the end; by default what it was at first."""
        return begun


class PromptData(ModelData):
    """Prompts of a file, each with the header of the picture that is to be drawn after it.

    Args:
        model: folder of the model.
        prompts: a file of lines: JSON objects with the key "prompt", or plain text.
        size: (height, width) of the pictures in pixels.
        documents_per_step, row_length, options: see `MixtureDataModule`; documents are prompts, of one source.
    """

    def __init__(
        self,
        model: str,
        prompts: str,
        size: tuple[int, int],
        documents_per_step: int = 8,
        row_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(model, {"prompts": documents_per_step}, row_length, **options)
        self.prompts, self.size = prompts, tuple(size)

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """The prompts that are not blank, each once."""
        vision = self.tokenizer.vision
        factor = 1 if vision is None else vision.spatial_factor
        if any(length < factor or length % factor for length in self.size):
            raise ValueError(f"data.size is {list(self.size)}; expected multiples of the tokenizer's factor {factor}")
        grid = (self.size[0] // factor, self.size[1] // factor)
        texts = dict.fromkeys(_prompt(line) for line in read_lines(self.prompts))
        return {"prompts": ListSource([prompt_document(self.tokenizer, text, "image", grid) for text in texts])}


def prompt_document(
    tokenizer: MultimodalTokenizer,
    text: str,
    modality: str,
    grid: tuple[int, ...],
    meta: Mapping[str, Any] | None = None,
) -> TokenDocument:
    """A prompt for a block of codes as a document without loss."""
    ids = tokenizer.prompt([text], modality, grid, meta)
    return TokenDocument(ids, ids.new_zeros(len(ids)).float())


def _prompt(line: Line) -> str:
    """The prompt of a line.

    Raises:
        BadLine: it holds none; with its place.
    """
    try:
        if not line.content.lstrip().startswith(b"{"):
            return line.text().strip()
        found = line.table().get("prompt")
        if not isinstance(found, str) or not found.strip():
            raise BadLine("wrong value", f'the key "prompt" holds {shown(found)}; expected words')
    except BadLine as error:
        raise BadLine(error.reason, f"{line.file} line {line.number}: {error}") from error
    return found.strip()
