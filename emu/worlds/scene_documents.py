"""Scenes of a world as token documents, and answers as numbers of the world again.

A document is the prompt, which weighs nothing, and the target. What the grammar forces and what the header says are not part of the target:
a task asks for codes, or for words and the end after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment, TextSegment, TokenDocument
from emu.modalities.boxes import Boxes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.worlds import BallWorld, Draws, FillWorld, LatticeWorld, ShapesWorld, World
from emu.worlds.fills import REST
from emu.worlds.moving import PICTURES_PER_SECOND
from emu.worlds.scene_codes import clip_codes, collisions, decode, picture_codes
from emu.worlds.tiles import LATTICE

QUESTION = "Describe it."
BEGINNING = 2
"""Frames of codes that the continuation task gives."""


class WorldDocuments:
    """Documents of one world through one tokenizer.

    Args:
        world: of still pictures or of clips of a ball.
        tokenizer: a vision tokenizer of temporal factor equal to the world's frames a step (1 for still pictures), the modalities that the
            world's tasks need, and the control "hole" where cells are hidden.
        size: pixels along a picture.
        tasks: what a model was trained on and is measured on; all of the world's tasks by default.

    Raises:
        ValueError: tokenizer and world do not fit, or the world has no such task.
    """

    def __init__(
        self, world: World, tokenizer: MultimodalTokenizer, size: int = 32, tasks: Iterable[str] | None = None
    ) -> None:
        if not isinstance(world, LatticeWorld | BallWorld):
            raise ValueError(
                f"world {world.name!r} has no pictures that this class could encode; use shapes() or moving()"
            )
        needed = ["video"] if isinstance(world, BallWorld) else ["image", *["boxes"] * isinstance(world, ShapesWorld)]
        missing = [name for name in needed if name not in tokenizer.layout.modalities]
        if missing or tokenizer.vision is None:
            raise ValueError(
                f"the tokenizer holds {sorted(tokenizer.layout.modalities)}; world {world.name!r} needs {needed}, with a vision tokenizer"
            )
        if size % tokenizer.vision.spatial_factor:
            raise ValueError(
                f"pictures of {size} pixels; the tokenizer's factor {tokenizer.vision.spatial_factor} does not divide that"
            )
        if isinstance(world, BallWorld) and world.frames_per_step != tokenizer.vision.temporal_factor:
            raise ValueError(
                f"the world shows {world.frames_per_step} frames a step, the tokenizer joins {tokenizer.vision.temporal_factor}; "
                "make the world with frames_per_step of that number"
            )
        self.world, self.tokenizer, self.size = world, tokenizer, size
        self.tasks = tuple(world.tasks if tasks is None else (world.task(name).name for name in tasks))
        self._captions: dict[int, Tensor] = {}

    def codes(self, variable: str, numbers: np.ndarray) -> Tensor:
        """(n, *grid) int64 codes of pictures or clips by their number."""
        if isinstance(self.world, LatticeWorld):
            return self._pictures[torch.from_numpy(np.asarray(numbers))].long()
        known, table = self._clips
        return table[torch.from_numpy(np.searchsorted(known, numbers))].long()

    @cached_property
    def _pictures(self) -> Tensor:
        assert isinstance(self.world, LatticeWorld) and self.tokenizer.vision is not None
        return picture_codes(self.world, self.tokenizer.vision, self.size)

    @cached_property
    def _clips(self) -> tuple[np.ndarray, Tensor]:
        assert isinstance(self.world, BallWorld) and self.tokenizer.vision is not None
        return clip_codes(self.world, self.tokenizer.vision, self.size)

    def check_distinct(self) -> None:
        """Raise ValueError where two scenes have the same codes: no model could tell them apart."""
        # Equal clips at two rates are told apart by their headers.
        table = self._pictures if isinstance(self.world, LatticeWorld) else self._clips[1]
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

    def header(self, variable: str, rate: int = PICTURES_PER_SECOND) -> tuple[str, tuple[int, ...], dict[str, Any]]:
        """(modality, grid, meta) of blocks that show a variable; of clips at a rate of pictures a second."""
        assert self.tokenizer.vision is not None
        side = self.size // self.tokenizer.vision.spatial_factor
        if variable == "boxes":
            assert isinstance(self.world, ShapesWorld)
            return "boxes", (self.world.num_objects, 4), {}
        if isinstance(self.world, LatticeWorld):
            return "image", (side, side), {}
        assert isinstance(self.world, BallWorld)
        meta = {"frames": self.world.num_steps * self.world.frames_per_step, "fps": rate}
        return "video", (self.world.num_steps, side, side), meta

    def _headers(self, task: str, given: np.ndarray) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
        """Headers of the blocks that answer prompts."""
        question = self.world.task(task)
        if isinstance(self.world, BallWorld):
            return [self.header(question.target, rate) for rate in self.world.rates_of(question.given, given).tolist()]
        return [self.header(question.target)] * len(given)

    def segments(self, variable: str, numbers: np.ndarray, weight: float = 1.0) -> list[Segment]:
        """One segment for each value of a variable that is shown in one part."""
        ((form, numbers),) = self.world.parts(variable, numbers)
        if form == "caption":
            return [TextSegment(self._caption(number), weight) for number in numbers.tolist()]
        if form == "boxes":
            assert isinstance(self.world, ShapesWorld)
            world = self.world
            boxes = [torch.from_numpy(Boxes(world.boxes_of(number)).bins) for number in numbers.tolist()]
            return [CodeSegment("boxes", bins, {}, weight) for bins in boxes]
        codes = self.codes(form, numbers)
        if not isinstance(self.world, BallWorld):
            return [CodeSegment("image", grid, {}, weight) for grid in codes]
        rates = self.world.rates_of(form, numbers).tolist()
        return [
            CodeSegment("video", grid, self.header(form, rate)[2], weight)
            for grid, rate in zip(codes, rates, strict=True)
        ]

    def _shown(self, task: str, given: np.ndarray) -> list[list[Segment]]:
        """What prompts show before the block or the text that answers them."""
        parts = [
            self.segments(form, numbers, 0.0)
            for form, numbers in self.world.parts(self.world.task(task).given, given)
            if form != REST
        ]
        shown: list[list[Segment]] = [list(some) for some in zip(*parts, strict=True)] if parts else [[] for _ in given]
        if self.world.task(task).target == "caption":
            shown = [[*some, self._question] for some in shown]
        return shown

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
        given, target = self.world.task(task).given, self.world.task(task).target
        targets = self._answers(task, draws.values(given), draws.values(target))
        if task == "continuation":
            return [self._with_prompt(self._continuation(clip), prompt_weight) for clip in targets]
        documents = []
        for i, (shown, answer) in enumerate(zip(self._shown(task, draws.values(given)), targets, strict=True)):
            if without_prompt is not None and without_prompt[i]:
                shown = [segment for segment in shown if segment is self._question]
            documents.append(self._with_prompt(self._target_only([*shown, answer]), prompt_weight))
        return documents

    def _answers(self, task: str, given: np.ndarray, target: np.ndarray) -> list[Segment]:
        """What is asked for."""
        answers = self.segments(self.world.task(task).target, target)
        if not isinstance(self.world, FillWorld):
            return answers
        return [replace(answer, hidden=mask) for answer, mask in zip(answers, self.hidden(given), strict=True)]

    def _with_prompt(self, document: TokenDocument, weight: float) -> TokenDocument:
        if weight == 0:
            return document
        prompt = self._codes_in(document.ids) * (document.weights == 0)
        return TokenDocument(document.ids, document.weights + weight * prompt)

    def _target_only(self, segments: Sequence[Segment]) -> TokenDocument:
        """A document of segments of which the last is asked for: of a block its codes, and of one with hidden cells what they hide."""
        document, answer = self.tokenizer.layout.build(segments), segments[-1]
        if isinstance(answer, TextSegment):
            return document
        return self._after(document, 0 if answer.hidden is None else int(answer.codes[~answer.hidden].numel()))

    def _after(self, document: TokenDocument, given: int) -> TokenDocument:
        """The document with weights on codes alone, and none on the first of those that weigh something."""
        weights = document.weights * self._codes_in(document.ids)
        # Codes weigh 1 each, so that their running sum counts them.
        return TokenDocument(document.ids, weights * (weights.cumsum(0) > given))

    def _codes_in(self, ids: Tensor) -> Tensor:
        found = torch.zeros(len(ids))
        for first, count in self.tokenizer.vocabulary.ranges.values():
            found += (ids >= first) & (ids < first + count)
        return found

    def _continuation(self, clip: Segment) -> TokenDocument:
        assert isinstance(clip, CodeSegment)
        return self._after(self.tokenizer.layout.build([clip]), clip.codes[:BEGINNING].numel())

    def prompts(self, task: str, given: np.ndarray) -> list[Tensor]:
        """Ids of prompts, each ending where the target begins."""
        layout, begin = self.tokenizer.layout, torch.tensor([self.tokenizer.vocabulary.controls["bos"]])
        shown = [[]] * len(given) if task == "continuation" else self._shown(task, given)
        ends: list[list[int]] = [[]] * len(given)
        if self.world.task(task).target != "caption":
            ends = [layout.header(*header) for header in self._headers(task, given)]
        return [
            torch.cat([begin, layout.build(some, add_special=False).ids, torch.tensor(end, dtype=torch.int64)])
            for some, end in zip(shown, ends, strict=True)
        ]

    def beginnings(self, given: np.ndarray) -> Tensor:
        """(n, 2, h, w) codes of the first frames that the continuation task gives."""
        assert isinstance(self.world, BallWorld)
        known, first = np.unique(self.world.variables["beginning"], return_index=True)
        clips = self.world.variables["clip"][first[np.searchsorted(known, given)]]
        return self.codes("clip", clips)[:, :BEGINNING]

    def hidden(self, given: np.ndarray) -> Tensor:
        """(n, h, w) bool cells of grids that prompts of a world with hidden rectangles hide."""
        assert isinstance(self.world, FillWorld)
        cells = torch.from_numpy(self.world.hidden_cells(given)).unflatten(1, (LATTICE, LATTICE))
        along = self.header("picture")[1][0] // LATTICE  # codes along a cell
        return cells.repeat_interleave(along, 1).repeat_interleave(along, 2)

    def read(self, task: str, answers: Tensor | list[Tensor], given: np.ndarray) -> np.ndarray:
        """Numbers of the target variable from generated codes (n, *grid) or lists of text ids; -1 where the world has no such value."""
        question = self.world.task(task)
        if question.target == "caption":
            known = self._caption_numbers
            return np.array([known.get(tuple(ids.tolist()), -1) for ids in answers])
        assert isinstance(answers, Tensor)
        if question.target == "boxes":
            assert isinstance(self.world, ShapesWorld)
            return np.array([self.world.read_boxes(bins) for bins in answers.numpy()])
        numbers = self.world.grade(self.pixels(answers))
        if isinstance(self.world, BallWorld):
            # Frames do not tell at which rate they are shown; the header of the block did.
            return self.world.at_rate(numbers, self.world.rates_of(question.given, given))
        return numbers

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
        shown = [question.target] if task == "continuation" else [question.given, question.target]
        forms = [form for variable in shown for form, _ in self.world.parts(variable, np.zeros(1, np.int64))]
        layout, length = self.tokenizer.layout, 2 + (len(self._question.ids) if question.target == "caption" else 0)
        for form in forms:
            if form == "caption":
                length += self.longest_caption
            elif form == REST:
                # Shown with holes, then what they hide.
                length += len(layout.block(*self.header("picture")[:2]))
            else:
                rates = self.world.rates if isinstance(self.world, BallWorld) else (PICTURES_PER_SECOND,)
                headers = [self.header(form, rate) for rate in rates]
                length += max(len(layout.header(*header)) for header in headers) + len(layout.block(*headers[0][:2]))
        return length
