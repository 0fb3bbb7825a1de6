"""Captions of worlds as prompts to draw after, without end, and the reward that reads the answers off exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emu.data.document_sources import DocumentSource, FunctionSource
from emu.data.model_data import ModelData
from emu.documents import TokenDocument
from emu.rewards import Candidate
from emu.worlds import TRAIN, BallWorld, LatticeWorld, World, worlds_of
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import ENDLESS, GUIDED


class WorldPromptData(ModelData):
    """Captions of worlds of shapes and of a rolling ball, each followed by the header of the picture or clip to be drawn.

    Args:
        model: folder of a model that was trained on the worlds.
        documents_per_step: "world/task" -> prompts of a step; tasks are "text-to-image" and "text-to-video".
        rules: "world/task" -> kinds of captions; all of the world's by default.
        size: pixels along a picture.
        row_length, options: see `MixtureDataModule`.
    """

    def __init__(
        self,
        model: str,
        documents_per_step: dict[str, int],
        row_length: int = 64,
        *,
        rules: dict[str, list[str]] | None = None,
        size: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(model, documents_per_step, row_length, **options)
        self.rules, self.size = dict(rules or {}), size

    def problems(self, trainer: Any) -> list[str]:
        """See `MixtureDataModule`."""
        found = super().problems(trainer) + self._name_problems()
        other = sorted(set(self.rules) - set(self.documents_per_step))
        return found + ([f"rules name {other}, which documents_per_step does not"] if other else [])

    def _name_problems(self) -> list[str]:
        """What is wrong with the names of worlds, tasks and rules; one sentence each."""
        found: list[str] = []
        known = worlds_of(name.partition("/")[0] for name in self.documents_per_step)
        for name in self.documents_per_step:
            world, _, task = name.partition("/")
            if world not in known or task not in known[world].tasks or task not in GUIDED:
                found.append(
                    f"documents_per_step names {name!r}; expected a world and a task that draws after captions, one/text-to-image, "
                    "two/text-to-image or moving/text-to-video"
                )
            elif name in self.rules:
                kinds = [rule.name for rule in known[world].captions.rules]
                unknown = sorted(set(self.rules[name]) - set(kinds))
                found += [f"rules of {name} name {unknown}; the world has {kinds}"] if unknown else []
        return found

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """Prompts by world and task.

        Raises:
            ValueError: there is no such world, task or kind of captions.
        """
        if problems := self._name_problems():
            raise ValueError("; ".join(problems))
        return {name: self._source(*name.split("/")) for name in self.documents_per_step}

    def _source(self, name: str, task: str) -> DocumentSource:
        world = worlds_of([name])[name]
        documents, rules = WorldDocuments(world, self.tokenizer, self.size), self.rules.get(f"{name}/{task}")

        def document(index: int, key: int) -> TokenDocument:
            given = world.draw(key, 1, TRAIN, rules=rules).values(world.task(task).given)
            (ids,) = documents.prompts(task, given)
            return TokenDocument(ids, torch.zeros(len(ids)))

        return FunctionSource(document, ENDLESS, documents.max_length(task))


class WorldReward:
    """1 where a picture or clip is possible after its caption, held-out combinations included, 0 where it is not.

    Right means that everything the caption says holds and nothing else is there; see `emu.evaluation.skills`.

    Args:
        worlds: that prompts come from.
    """

    def __init__(self, worlds: Sequence[str] = ("one", "two", "moving")) -> None:
        self.worlds = tuple(worlds)
        missing = sorted(set(self.worlds) - set(worlds_of(self.worlds)))
        if missing or not self.worlds:
            raise ValueError(f"reward.worlds names {missing or 'nothing'}; expected worlds such as one, two and moving")

    @cached_property
    def _captions(self) -> dict[str, tuple[World, int]]:
        found: dict[str, tuple[World, int]] = {}
        for name in self.worlds:
            world = worlds_of([name])[name]
            found |= {world.captions.text(number): (world, number) for number in range(len(world.captions))}
        return found

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """The rewards.

        Raises:
            ValueError: a prompt is no caption of these worlds, or what was drawn is not what they show.
        """
        scores = [0.0] * len(candidates)
        by_world: dict[int, list[int]] = {}
        known = [self._known(candidate) for candidate in candidates]
        for number, (world, _) in enumerate(known):
            by_world.setdefault(id(world), []).append(number)
        for numbers in by_world.values():
            world = known[numbers[0]][0]
            captions = np.array([known[number][1] for number in numbers])
            for number, right in zip(
                numbers, self._right(world, captions, [candidates[n] for n in numbers]), strict=True
            ):
                scores[number] = float(right)
        return scores

    def _known(self, candidate: Candidate) -> tuple[World, int]:
        found = self._captions.get(candidate.prompt)
        if found is None:
            raise ValueError(
                f"the prompt {candidate.prompt!r:.100} is no caption of the worlds {', '.join(self.worlds)}; name in reward.worlds those "
                "that the prompts come from"
            )
        return found

    def _right(self, world: World, captions: np.ndarray, candidates: Sequence[Candidate]) -> np.ndarray:
        """(n,) bool."""
        clips, given = isinstance(world, BallWorld), captions
        if any(candidate.modality != ("video" if clips else "image") for candidate in candidates):
            raise ValueError(
                f"{candidates[0].modality} drawn after captions of the world {world.name!r}, which has none"
            )
        assert isinstance(world, BallWorld | LatticeWorld)
        if clips:
            pixels = np.stack([candidate.value.frames for candidate in candidates])
        else:
            pixels = np.stack([np.asarray(candidate.value) for candidate in candidates])
        answers = world.grade(pixels)
        task = "text-to-video" if clips else "text-to-image"
        return np.isfinite(world.log2_probability(task, answers, given, full=True))
