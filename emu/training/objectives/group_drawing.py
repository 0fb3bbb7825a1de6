"""Groups of answers to the prompts of a batch: drawn by the engine, all at once, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.documents import CodeSegment
from emu.generation import Engine
from emu.generation.prompt_ids import negative_rows
from emu.generation.sampling import Sampling
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.packing import Packed
from emu.randomness import derive_key
from emu.rewards import Candidate, Reward, score
from emu.training.objectives.code_distributions import DrawnBlocks


@dataclass(frozen=True)
class DrawnGroups:
    """Groups of G blocks of one modality and grid, one group for each of P prompts.

    Attributes:
        blocks: P * G of them, those of a prompt side by side.
        numbers: of the prompts in their batch.
        rewards: (P, G) float64, NaN where there is no score.
    """

    blocks: DrawnBlocks
    numbers: Sequence[int]
    rewards: Tensor

    @property
    def distinct(self) -> Tensor:
        """(P,) share of different answers in each group, from 1 / G to 1: how much variety is left."""
        groups = self.blocks.drawn.unflatten(0, self.rewards.shape)
        return torch.tensor([len(group.unique(dim=0)) / len(group) for group in groups], dtype=torch.float64)


def prompts_of(batch: Packed) -> list[Tensor]:
    """The documents of packed rows (R, S), row by row: 1-D int64 tensors on the CPU."""
    ids, segments = batch.input_ids.cpu(), batch.segment_ids.cpu()
    return [
        row[own == number] for row, own in zip(ids, segments, strict=True) for number in range(1, int(own.max()) + 1)
    ]


class GroupDrawing:
    """Draws and scores.

    Args:
        engine: of the model that trains.
        tokenizer: reads prompts and turns codes into values.
        reward: of the candidates.
        size: answers to a prompt.
        sampling: how codes are drawn.
    """

    def __init__(
        self, engine: Engine, tokenizer: MultimodalTokenizer, reward: Reward, size: int, sampling: Sampling
    ) -> None:
        self.engine, self.tokenizer, self.reward = engine, tokenizer, reward
        self.size, self.sampling = size, sampling

    def __call__(self, prompts: Sequence[Tensor], key: int) -> list[DrawnGroups]:
        """Groups of answers to prompts, by the kinds of their blocks.

        Args:
            prompts: 1-D int64 ids, each ending in the header of a block.
            key: of the noise; equal prompts at other places of a batch draw other answers.

        Raises:
            ValueError: a prompt does not end in a header, or the reward gave no scores.
        """
        layout = self.engine.layout
        kinds: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for number, prompt in enumerate(prompts):
            header = layout.own_header(prompt)
            if header is None:
                raise ValueError(
                    f"prompt {number} of the batch does not end in the header of a block, so that nothing can be drawn after it; train "
                    "this objective on prompts, e.g. of emu.worlds.world_prompts.WorldPromptData"
                )
            modality, grid, _ = layout.parse_header(header.tolist())
            kinds.setdefault((modality, tuple(grid)), []).append(number)
        return [self._drawn(prompts, numbers, *kind, key) for kind, numbers in kinds.items()]

    def _drawn(
        self, prompts: Sequence[Tensor], numbers: list[int], modality: str, grid: tuple[int, ...], key: int
    ) -> DrawnGroups:
        some = [prompts[number] for number in numbers]
        negatives = [self._negative(prompt) for prompt in some] if self.sampling.guided else []
        seeds = [derive_key("group", key, number) for number in numbers]
        codes = self.engine.generate_grids(
            some, negatives, modality, grid, self.sampling, seed=seeds, streams=self.size
        )
        blocks = DrawnBlocks(
            [prompt for prompt in some for _ in range(self.size)],
            [negative for negative in negatives for _ in range(self.size)],
            codes,
            self.engine.layout.block(modality, grid),
            self.sampling,
            modality,
        )
        rewards = score(self.reward, self._candidates(blocks, modality))
        return DrawnGroups(blocks, numbers, rewards.unflatten(0, (len(numbers), self.size)))

    def _negative(self, prompt: Tensor) -> Tensor:
        """What a prompt is guided against, as `Emu` does it: the model's template without words, or BOS, and the header."""
        layout = self.engine.layout
        header = layout.own_header(prompt)
        assert header is not None
        shown = [segment for segment in layout.parse(prompt[: -len(header)]) if isinstance(segment, CodeSegment)]
        begun = self.tokenizer.unconditional(shown)
        if begun is not None:
            return torch.cat([begun, header])
        return negative_rows([prompt], None, layout, layout.vocabulary.size)[0]

    def _candidates(self, blocks: DrawnBlocks, modality: str) -> list[Candidate]:
        layout, found = self.engine.layout, list[Candidate]()
        for first in range(0, len(blocks), self.size):  # the answers of a group share their prompt
            prompt, codes = blocks.prompts[first], blocks.codes[first : first + self.size]
            header = layout.own_header(prompt)
            assert header is not None
            items = tuple(self.tokenizer.decode(prompt[: -len(header)]))
            meta = layout.parse_header(header.tolist())[2]
            values = self.tokenizer.decode_blocks([CodeSegment(modality, some, meta) for some in codes])
            found += [Candidate(items, value, some, modality) for value, some in zip(values, codes, strict=True)]
        return found
