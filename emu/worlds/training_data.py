"""Rendered worlds under Lightning: documents drawn anew for every step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource
from emu.documents import CodeSegment, TextSegment, TokenDocument
from emu.layouts import Emu3Layout
from emu.model_settings import write_settings
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults
from emu.randomness import key_of, uniforms
from emu.trained import CLIP, Trained, infill_task, task_name
from emu.vocabulary import Vocabulary
from emu.worlds import TRAIN, BallWorld, World, worlds_of
from emu.worlds.moving import PICTURES_PER_SECOND
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.scene_documents import WorldDocuments
from emu_tokenizers.files import write_json

WORLDS_FILE = "worlds.json"
"""In a model's folder: the worlds that it was trained on, by name and fingerprint, the tasks, and the size of the pictures."""
ENDLESS = 1 << 40
GUIDED = ("text-to-image", "text-to-video")
"""Tasks whose prompt is left out now and then, so that guidance has something to move away from."""


class WorldSource:
    """Documents of one task of one world; no document comes twice, since each is drawn from its key.

    Args:
        documents: of the world.
        task: name of the task.
        prompt_dropout: share of documents without their prompt.
        prompt_weight: loss weight of codes in the prompt.
    """

    def __init__(
        self, documents: WorldDocuments, task: str, prompt_dropout: float = 0.0, prompt_weight: float = 0.0
    ) -> None:
        self.documents, self.task = documents, task
        self.prompt_dropout, self.prompt_weight = prompt_dropout, prompt_weight
        self.max_length = documents.max_length(task)

    def __len__(self) -> int:
        return ENDLESS

    def document(self, index: int, key: int) -> TokenDocument:
        """The document of this key."""
        draws = self.documents.world.draw(key, 1, TRAIN)
        dropped = uniforms(key_of("prompt", key), 0, 1, 1)[:, 0] < self.prompt_dropout
        return self.documents.documents(self.task, draws, without_prompt=dropped, prompt_weight=self.prompt_weight)[0]


class WorldsData(MixtureDataModule):
    """All tasks of worlds of shapes, edits and a rolling ball, in one mixture.

    The tokenizers are made from nothing when the run starts: words from the captions, codes from the patches of rendered pictures.

    Args:
        documents_per_step: "world/task" -> how many of its documents a step holds; worlds are "one", "two", "moving" and those of
            `emu.worlds.MORE_WORLDS`.
        row_length: positions of a packed row.
        size: pixels along a picture, 32, 64 or 128.
        codebook_size: number of vision codes; 64 keep all patches of 32x32 pictures apart.
        text_size: number of text ids, 256 of which are bytes.
        per_channel: three codes a cell, one for each colour channel, so that a shape in an unseen colour
            is made of known codes.
        prompt_dropout: share of text-to-image and text-to-video documents without a caption.
        prompt_weight: loss weight of codes in prompts: what a picture that is to be described teaches about pictures.
        unseen_kinds: hold four pairs of shape and colour out of training altogether.
        layout: name of the layout.
        seed, steps_per_epoch, num_workers: see `MixtureDataModule`.
    """

    sources_take_long = True

    def __init__(
        self,
        documents_per_step: dict[str, int],
        row_length: int = 256,
        *,
        size: int = 32,
        codebook_size: int = 64,
        text_size: int = 416,
        per_channel: bool = False,
        prompt_dropout: float = 0.1,
        prompt_weight: float = 0.0,
        unseen_kinds: bool = False,
        layout: str = Emu3Layout.name,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            documents_per_step, row_length, seed=seed, steps_per_epoch=steps_per_epoch, num_workers=num_workers
        )
        self.size, self.text_size, self.layout = size, text_size, layout
        self.codebook_size, self.per_channel = codebook_size, per_channel
        self.prompt_dropout, self.prompt_weight, self.unseen_kinds = prompt_dropout, prompt_weight, unseen_kinds

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`."""
        found = super().problems(trainer)
        if self.size < 32 or self.size % 32:
            found.append(f"size is {self.size}; expected a multiple of 32")
        if not 0 <= self.prompt_dropout < 1:
            found.append(f"prompt_dropout is {self.prompt_dropout}; expected a share of 0 or more, below 1")
        return found

    @cached_property
    def worlds(self) -> dict[str, World]:
        """The worlds by name: the three standard ones, and those of the mixture."""
        named = {name.partition("/")[0] for name in self.documents_per_step}
        return worlds_of(named, self.unseen_kinds)

    @cached_property
    def tokenizer(self) -> MultimodalTokenizer:
        """Both tokenizers, the same for the same arguments."""
        return fit_tokenizer(
            list(self.worlds.values()),
            self.size,
            codebook_size=self.codebook_size,
            per_channel=self.per_channel,
            text_size=self.text_size,
            layout=self.layout,
        )

    @cached_property
    def documents(self) -> dict[str, WorldDocuments]:
        """How scenes of each world are written; refuses tokenizers that do not keep them apart."""
        found = {name: WorldDocuments(world, self.tokenizer, self.size) for name, world in self.worlds.items()}
        for documents in found.values():
            documents.check_distinct()
        return found

    @property
    def document_tokenizer(self) -> MultimodalTokenizer:
        """See `MixtureDataModule`."""
        return self.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """See `MixtureDataModule`."""
        return self.tokenizer.vocabulary

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """Every task of every world."""
        return {
            f"{name}/{task}": WorldSource(
                documents, task, self.prompt_dropout if task in GUIDED else 0.0, self.prompt_weight
            )
            for name, documents in self.documents.items()
            for task in documents.world.tasks
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizers, generation defaults and the worlds' fingerprints beside the exported model."""
        self.tokenizer.save_pretrained(folder)
        defaults = GenerationDefaults(
            size=(self.size, self.size), frames=4, fps=PICTURES_PER_SECOND, guidance_scale=1.0, top_k=0
        )
        tasks: dict[str, list[str]] = {}
        for name in self.source_names:
            world, task = name.split("/")
            tasks.setdefault(world, []).append(task)
        worlds = {name: self.worlds[name].fingerprint() for name in tasks}
        table = {"size": self.size, "unseen_kinds": self.unseen_kinds, "worlds": worlds, "tasks": tasks}
        write_json(folder / WORLDS_FILE, table)
        write_settings(folder, defaults.to_dict(), self.tokenizer.fingerprints, self.trained())

    def trained(self) -> Trained:
        """What the mixture teaches, told from one document of each of its sources."""
        tasks: list[str] = []
        clips: list[BallWorld] = []
        for name in self.source_names:
            world, _, task = name.partition("/")
            documents = self.documents[world]
            segments = self.tokenizer.layout.parse(documents.documents(task, documents.world.draw(0, 1))[0].ids)
            kinds = ["text" if isinstance(segment, TextSegment) else segment.modality for segment in segments]
            answer = segments[-1]
            is_filled = isinstance(answer, CodeSegment) and answer.hidden is not None
            tasks.append(infill_task(kinds[-1]) if is_filled else task_name(kinds[:-1], kinds[-1]))
            if task in GUIDED and self.prompt_dropout:
                tasks.append(task_name([], kinds[-1]))
            if isinstance(documents.world, BallWorld):
                clips.append(documents.world)
        if clips:
            tasks.append(f"{CLIP}_continuation")
        frames, rates = {world.num_steps for world in clips}, {rate for world in clips for rate in world.rates}
        size, context = (self.size, self.size), max(self.longest_documents()[name] for name in self.source_names)
        return Trained(tuple(dict.fromkeys(tasks)), (size,), tuple(sorted(frames)), tuple(sorted(rates)), context)
