"""The plan of a run on N cards: memory by part, communication, time, and a layout that fits.

Memory of tensors is computed (`emu.training.planning.step_memory`). What a card adds, how fast it is and how well communication hides
behind work is a model, from data sheets and from the share of a card's peak that others report; nothing of it was measured here.
docs/scale.md has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.model import tensor_shapes
from emu.training.blocks import Checkpointing, checkpoint_blocks
from emu.training.flops import step_flops
from emu.training.planning.machines import Card
from emu.training.planning.run_facts import RunFacts
from emu.training.planning.step_memory import StepMemory, StepOptions, pass_memory, step_memory

UTILISATION = 0.35
"""Share of a card's peak that training reaches: torchtitan reports 33 to 39 % for Llama 3.1 8B on 8 and 128 H100 (its benchmarks of
December 2024)."""
SECONDS_A_DAY = 86_400
FEW, MORE = 2, 4
"""Layers of models that are computed in the place of a deeper one: each further layer adds the same."""
MANY_TOKENS = 1 << 16
DEEP = 8
"""Tokens of a batch, and layers of a model, up to which they are computed as they are."""
KEPT: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""What blocks keep for the backward pass, the fastest first."""


@dataclass(frozen=True)
class RunLayout:
    """How a run lies on its cards.

    Attributes:
        cards: processes, each on one card.
        sharded: whether weights, gradients and moments are split over them (FSDP2).
        rows: of a batch on one card.
        accumulation: batches of an optimizer step.
        checkpointing: one of `KEPT`.
    """

    cards: int
    sharded: bool
    rows: int
    accumulation: int
    checkpointing: Checkpointing


@dataclass(frozen=True)
class CardMemory:
    """Bytes on one card, which may be added up.

    Attributes:
        weights, gradients, optimizer: this card's share; the moving average of the weights, where one is kept, stands with the optimizer.
        gathered: weights of the blocks at hand, of embedding and head, which are whole while they are used; buckets of gradients.
        activations: what blocks and loss keep and make.
        total: at the worst moment.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    total: float


class StepTimes(NamedTuple):
    """What an optimizer step sends, and how long it takes.

    Attributes:
        sent: bytes that a card sends.
        step_seconds: of the step.
        seconds_sending: of those, what communication alone would take.
        tokens_per_second: positions, over all cards.
    """

    sent: float
    step_seconds: float
    seconds_sending: float
    tokens_per_second: float


@dataclass(frozen=True)
class RunPlan:
    """What a run takes.

    Attributes:
        layout: on the cards.
        memory: of one card.
        sent, step_seconds, seconds_sending, tokens_per_second: see `StepTimes`.
    """

    layout: RunLayout
    memory: CardMemory
    sent: float
    step_seconds: float
    seconds_sending: float
    tokens_per_second: float


def num_parameters(config: EmuConfig) -> tuple[int, int]:
    """Parameters of the blocks and the last norm; and of embedding and head, which are one where they are tied."""
    sizes = {name: _product(shape) for name, shape in tensor_shapes(_of_depth(config, 1)).items()}
    if config.tie_word_embeddings:
        sizes.pop("lm_head.weight", None)
    tables = sum(size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name)
    block = sum(size for name, size in sizes.items() if ".layers." in name)
    return sum(sizes.values()) - tables + block * (config.num_hidden_layers - 1), tables


class Planner:
    """Plans of one run on one kind of card.

    Args:
        facts: of the run.
        card: which.
    """

    def __init__(self, facts: RunFacts, card: Card) -> None:
        self.facts, self.card = facts, card
        self._blocks, self._tables = num_parameters(facts.config)
        self._computed: dict[tuple[Checkpointing, int], int] = {}

    def planned(self, layout: RunLayout) -> RunPlan:
        """The plan with a layout."""
        return RunPlan(layout, self._memory(layout), *self._times(layout))

    def best(self, cards: int) -> RunPlan | None:
        """The fastest plan of the same optimizer step that fits the memory of a card, the recipe's own where none is faster; None where
        none fits."""
        layouts = [recipe_layout(self.facts, cards), *_layouts(self.facts, cards)]
        times = {layout: self._times(layout) for layout in layouts}
        for layout in sorted(
            times, key=lambda layout: times[layout].step_seconds
        ):  # memory takes long to compute, time does not
            if sum(self._of_weights(layout)) > self.card.memory:
                continue
            memory = self._memory(layout)
            if memory.total <= self.card.memory:
                return RunPlan(layout, memory, *times[layout])
        return None

    def _times(self, layout: RunLayout) -> StepTimes:
        """What a step with a layout sends, and how long it takes."""
        facts, card = self.facts, self.card
        tokens, length = facts.tokens_per_step, facts.row_length
        pairs = tokens * (length + 1) / 2  # one document a row, which is the most that attention may have to do
        work = step_flops(facts.config, tokens, tokens, pairs)
        if layout.checkpointing == "full":  # the blocks' forward pass once more, a third of their work
            work += step_flops(facts.config, tokens, 0, pairs) / 3
        narrow = facts.mixed is not None or facts.weights.itemsize == 2
        working = work / ((card.bfloat16 if narrow else card.float32) * layout.cards * UTILISATION)
        sent = self._sent(layout)
        sending = sent / card.bandwidth(layout.cards)
        seconds = max(working, sending)
        return StepTimes(sent, seconds, sending, tokens / seconds)

    def _sent(self, layout: RunLayout) -> float:
        """Bytes that a card sends in an optimizer step.

        A ring sends a card's share (n - 1) / n of what is gathered or reduced. FSDP2 gathers weights in the forward and in the backward
        pass and reduces gradients, for every batch; DDP reduces gradients once, which is two rounds of a ring.
        """
        size = (self._blocks + self._tables) * self.facts.weights.itemsize * (layout.cards - 1) / layout.cards
        return 3.0 * size * layout.accumulation if layout.sharded else 2.0 * size

    def _memory(self, layout: RunLayout) -> CardMemory:
        """Bytes of a card."""
        parts = (*self._of_weights(layout), self._activations(layout))
        return CardMemory(*parts, sum(parts))

    def _of_weights(self, layout: RunLayout) -> tuple[float, float, float, float]:
        """Bytes of weights, gradients and optimizer, and of what is gathered."""
        config, size = self.facts.config, self.facts.weights.itemsize
        blocks, tables = self._blocks, self._tables
        share = layout.cards if layout.sharded else 1
        weights = float(size * (blocks + tables))
        moments = 2.0 * weights
        if self.facts.module.optimizer_options.name == "muon":  # one moment of each matrix of a block
            moments -= blocks * size
        if self.facts.module.average_decay:
            moments += weights
        # FSDP2 fetches a block while it works on another one; DDP adds gradients up in buckets beside them.
        gathered = size * (2 * blocks / config.num_hidden_layers + tables) if layout.sharded else weights
        if layout.cards == 1:
            gathered = 0.0
        return weights / share, weights / share, moments / share, gathered

    def _activations(self, layout: RunLayout) -> float:
        """Those of a batch; of many rows, from two shorter batches, since each further row adds the same."""
        some = max(1, MANY_TOKENS // (2 * self.facts.row_length))
        if layout.rows <= 2 * some:
            return self._of_rows(layout, layout.rows)
        few, more = self._of_rows(layout, some), self._of_rows(layout, 2 * some)
        return more + (layout.rows - 2 * some) * (more - few) / some

    def _of_rows(self, layout: RunLayout, rows: int) -> int:
        key = (layout.checkpointing, rows)
        if key not in self._computed:
            options = step_options(self.facts, replace(layout, rows=rows))
            few, more = (pass_memory(_of_depth(self.facts.config, depth), options) for depth in (FEW, MORE))
            self._computed[key] = _further(few, more, self.facts.config.num_hidden_layers)
        return self._computed[key]


def run_memory(facts: RunFacts, options: StepOptions) -> StepMemory:
    """The memory of a step on one process, from shallower models where it has many layers."""
    layers = facts.config.num_hidden_layers
    if layers <= DEEP:
        return step_memory(facts.config, options)
    few, more = (vars(step_memory(_of_depth(facts.config, depth), options)) for depth in (FEW, MORE))
    return StepMemory(**{name: _further(few[name], more[name], layers) for name in few})


def recipe_layout(facts: RunFacts, cards: int) -> RunLayout:
    """The layout that the recipe itself asks for."""
    rows = -(-facts.rows // cards)
    return RunLayout(cards, facts.sharded and cards > 1, rows, facts.accumulation, facts.module.checkpointing)


def _layouts(facts: RunFacts, cards: int) -> Iterator[RunLayout]:
    """Layouts of the same rows of an optimizer step; of those that are equally fast the one of most rows at a time first."""
    rows = -(-facts.rows // cards) * facts.accumulation
    counts = [rows >> halved for halved in range(rows.bit_length()) if rows % (1 << halved) == 0]
    for checkpointing in KEPT:
        for sharded in (False, True) if cards > 1 else (False,):
            yield from (RunLayout(cards, sharded, count, rows // count, checkpointing) for count in counts)


def step_options(facts: RunFacts, layout: RunLayout) -> StepOptions:
    """What the memory of a step is computed with."""
    prepare = None if layout.checkpointing == KEPT[0] else partial(_prepared, layout.checkpointing)
    return StepOptions(
        layout.rows,
        facts.row_length,
        replace(facts.module.optimizer_options, total_steps=10),
        facts.weights,
        facts.mixed,
        prepare,
    )


def _prepared(checkpointing: Checkpointing, model: EmuForCausalLM) -> None:
    checkpoint_blocks(model, checkpointing)


def _of_depth(config: EmuConfig, layers: int) -> EmuConfig:
    return EmuConfig.from_dict({**config.to_dict(), "num_hidden_layers": layers})


def _further(few: int, more: int, layers: int) -> int:
    return more + (layers - MORE) * (more - few) // (MORE - FEW)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
