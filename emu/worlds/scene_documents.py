"""Scenes of a world as token documents, and answers as numbers of the world again.

A document is the prompt, which weighs nothing, and the target. What the grammar forces and what the header says are not part of the target:
a task asks for codes, or for words and the end after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment, TextSegment, TokenDocument
from emu.modalities.boxes import Boxes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.worlds import Draws, MovingWorld, ShapesWorld, World
from emu.worlds.scene_codes import clip_codes, collisions, decode, picture_codes

QUESTION = "Describe it."
FPS = 4
BEGINNING = 2
"""Frames of codes that the continuation task gives."""


class WorldDocuments:
    """Documents of one world through one tokenizer.

    Args:
        world: of shapes or of a rolling ball.
        tokenizer: a vision tokenizer of temporal factor equal to the world's frames a step (1 for still pictures), and the modalities that
            the world's tasks need.
        size: pixels along a picture.
        tasks: what a model was trained on and is measured on; all of the world's tasks by default.

    Raises:
        ValueError: tokenizer and world do not fit, or the world has no such task.
    """

    def __init__(
        self, world: World, tokenizer: MultimodalTokenizer, size: int = 32, tasks: Iterable[str] | None = None
    ) -> None:
        if not isinstance(world, ShapesWorld | MovingWorld):
            raise ValueError(
                f"world {world.name!r} has no pictures that this class could encode; use shapes() or moving()"
            )
        needed = ["video"] if isinstance(world, MovingWorld) else ["image", "boxes"]
        missing = [name for name in needed if name not in tokenizer.layout.modalities]
        if missing or tokenizer.vision is None:
            raise ValueError(
                f"the tokenizer holds {sorted(tokenizer.layout.modalities)}; world {world.name!r} needs {needed}, with a vision tokenizer"
            )
        if size % tokenizer.vision.spatial_factor:
            raise ValueError(
                f"pictures of {size} pixels; the tokenizer's factor {tokenizer.vision.spatial_factor} does not divide that"
            )
        if isinstance(world, MovingWorld) and world.frames_per_step != tokenizer.vision.temporal_factor:
            raise ValueError(
                f"the world shows {world.frames_per_step} frames a step, the tokenizer joins {tokenizer.vision.temporal_factor}; "
                "make the world with frames_per_step of that number"
            )
        self.world, self.tokenizer, self.size = world, tokenizer, size
        self.tasks = tuple(world.tasks if tasks is None else (world.task(name).name for name in tasks))
        self._captions: dict[int, Tensor] = {}

    def codes(self, variable: str, numbers: np.ndarray) -> Tensor:
        """(n, *grid) int64 codes of pictures or clips by their number."""
        if variable == "picture":
            return self._pictures[torch.from_numpy(np.asarray(numbers))].long()
        known, table = self._clips
        return table[torch.from_numpy(np.searchsorted(known, numbers))].long()

    @cached_property
    def _pictures(self) -> Tensor:
        assert isinstance(self.world, ShapesWorld) and self.tokenizer.vision is not None
        return picture_codes(self.world, self.tokenizer.vision, self.size)

    @cached_property
    def _clips(self) -> tuple[np.ndarray, Tensor]:
        assert isinstance(self.world, MovingWorld) and self.tokenizer.vision is not None
        return clip_codes(self.world, self.tokenizer.vision, self.size)

    def check_distinct(self) -> None:
        """Raise ValueError where two scenes have the same codes: no model could tell them apart."""
        table = self._pictures if isinstance(self.world, ShapesWorld) else self._clips[1]
        same = collisions(table)
        if same:
            raise ValueError(
                f"{same} of {len(table)} scenes of world {self.world.name!r} have codes that another scene has too; the tokenizer does not "
                "keep them apart, use one that was trained on this world"
            )

    def pixels(self, codes: Tensor) -> np.ndarray:
        """uint8 pictures (n, H, W, 3) or clips (n, T, H, W, 3) of codes (n, *grid)."""
        assert self.tokenizer.vision is not None
        return decode(self.tokenizer.vision, codes)

    def header(self, variable: str) -> tuple[str, tuple[int, ...], dict[str, Any]]:
        """(modality, grid, meta) of blocks that show a variable."""
        assert self.tokenizer.vision is not None
        side = self.size // self.tokenizer.vision.spatial_factor
        if variable == "picture":
            return "image", (side, side), {}
        if variable == "boxes":
            assert isinstance(self.world, ShapesWorld)
            return "boxes", (self.world.num_objects, 4), {}
        assert isinstance(self.world, MovingWorld)
        return (
            "video",
            (self.world.num_steps, side, side),
            {"frames": self.world.num_steps * self.world.frames_per_step, "fps": FPS},
        )

    def segments(self, variable: str, numbers: np.ndarray, weight: float = 1.0) -> list[Segment]:
        """One segment for each value of a variable."""
        if variable == "caption":
            return [TextSegment(self._caption(number), weight) for number in numbers.tolist()]
        modality, _, meta = self.header(variable)
        if variable == "boxes":
            assert isinstance(self.world, ShapesWorld)
            world = self.world
            boxes = [torch.from_numpy(Boxes(world.boxes_of(number)).bins) for number in numbers.tolist()]
            return [CodeSegment(modality, bins, meta, weight) for bins in boxes]
        return [CodeSegment(modality, codes, meta, weight) for codes in self.codes(variable, numbers)]

    def _caption(self, number: int) -> Tensor:
        if number not in self._captions:
            text = self.world.captions.text(number)
            self._captions[number] = torch.tensor(self.tokenizer.layout.encode_text(text), dtype=torch.int64)
        return self._captions[number]

    @cached_property
    def _question(self) -> TextSegment:
        ids = torch.tensor(self.tokenizer.layout.encode_text(QUESTION), dtype=torch.int64)
        return TextSegment(ids, 0.0)

    def documents(
        self, task: str, draws: Draws, *, without_prompt: np.ndarray | None = None, prompt_weight: float = 0.0
    ) -> list[TokenDocument]:
        """Documents of a task; weights are 1 on the target and 0 elsewhere.

        Args:
            task: name of the task.
            draws: scenes.
            without_prompt: (n,) bool, documents that show the target alone, so that a model learns what guidance moves away from.
            prompt_weight: weight of codes in the prompt, above 0 for training that models prompts too.

        Raises:
            ValueError: the world has no such task.
        """
        question = self.world.task(task)
        targets = self.segments(question.target, draws.values(question.target))
        if task == "continuation":
            return [self._with_prompt(self._continuation(target), prompt_weight) for target in targets]
        givens = self.segments(question.given, draws.values(question.given), 0.0)
        documents = []
        for i, (given, target) in enumerate(zip(givens, targets, strict=True)):
            parts = [] if without_prompt is not None and without_prompt[i] else [given]
            if question.target == "caption":
                parts.append(self._question)
            document = self._target_only(self.tokenizer.layout.build([*parts, target]), question.target)
            documents.append(self._with_prompt(document, prompt_weight))
        return documents

    def _with_prompt(self, document: TokenDocument, weight: float) -> TokenDocument:
        if weight == 0:
            return document
        prompt = self._codes_in(document.ids) * (document.weights == 0)
        return TokenDocument(document.ids, document.weights + weight * prompt)

    def _target_only(self, document: TokenDocument, variable: str) -> TokenDocument:
        if variable == "caption":
            return document
        return TokenDocument(document.ids, document.weights * self._codes_in(document.ids))

    def _codes_in(self, ids: Tensor) -> Tensor:
        found = torch.zeros(len(ids))
        for first, count in self.tokenizer.vocabulary.ranges.values():
            found += (ids >= first) & (ids < first + count)
        return found

    def _continuation(self, clip: Segment) -> TokenDocument:
        document = self.tokenizer.layout.build([clip])
        weights = document.weights * self._codes_in(document.ids)
        assert isinstance(clip, CodeSegment)
        given = clip.codes[:BEGINNING].numel()
        # Codes weigh 1 each, so that their running sum counts them: the given ones are the first.
        return TokenDocument(document.ids, weights * (weights.cumsum(0) > given))

    def prompts(self, task: str, given: np.ndarray) -> list[Tensor]:
        """Ids of prompts, each ending where the target begins."""
        question, layout = self.world.task(task), self.tokenizer.layout
        begin = torch.tensor([self.tokenizer.vocabulary.controls["bos"]])
        if task == "continuation":
            end = torch.tensor(layout.header(*self.header("clip")))
            return [torch.cat([begin, end])] * len(given)
        asks_text = question.target == "caption"
        end = self._question.ids if asks_text else torch.tensor(layout.header(*self.header(question.target)))
        shown = self.segments(question.given, given, 0.0)
        return [torch.cat([begin, layout.build([segment], add_special=False).ids, end]) for segment in shown]

    def beginnings(self, given: np.ndarray) -> Tensor:
        """(n, 2, h, w) codes of the first frames that the continuation task gives."""
        assert isinstance(self.world, MovingWorld)
        first = {
            int(number): row for row, number in reversed(list(enumerate(self.world.variables["beginning"].tolist())))
        }
        clips = self.world.variables["clip"][[first[int(number)] for number in given]]
        return self.codes("clip", clips)[:, :BEGINNING]

    def read(self, variable: str, answers: Tensor | list[Tensor]) -> np.ndarray:
        """Numbers of a variable from generated codes (n, *grid) or lists of text ids; -1 where the world has no such value."""
        if variable == "caption":
            known = self._caption_numbers
            return np.array([known.get(tuple(ids.tolist()), -1) for ids in answers])
        assert isinstance(answers, Tensor)
        if variable == "boxes":
            assert isinstance(self.world, ShapesWorld)
            return np.array([self.world.read_boxes(bins) for bins in answers.numpy()])
        return self.world.grade(self.pixels(answers))

    @cached_property
    def _caption_numbers(self) -> Mapping[tuple[int, ...], int]:
        return {tuple(self._caption(number).tolist()): number for number in range(len(self.world.captions))}

    @cached_property
    def longest_caption(self) -> int:
        """Tokens of the longest caption."""
        return max(map(len, self._caption_numbers))

    def max_length(self, task: str) -> int:
        """Upper bound on the tokens of a document of a task."""
        question = self.world.task(task)
        length = 2 + (len(self._question.ids) if question.target == "caption" else 0)
        shown = [question.target] if task == "continuation" else [question.given, question.target]
        for variable in shown:
            if variable == "caption":
                length += self.longest_caption
            else:
                modality, grid, meta = self.header(variable)
                layout = self.tokenizer.layout
                length += len(layout.header(modality, grid, meta)) + len(layout.block(modality, grid))
        return length
