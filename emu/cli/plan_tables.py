"""The lines that `emu plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from emu.pipeline.drawing_memory import shown_bytes
from emu.pipeline.drawing_plan import PROMPT, drawing_plan
from emu.training.planning.machines import Card
from emu.training.planning.run_facts import RunFacts, read_facts
from emu.training.planning.run_plan import (
    SECONDS_A_DAY,
    UTILISATION,
    CardMemory,
    Planner,
    RunLayout,
    RunPlan,
    num_parameters,
    recipe_layout,
    run_memory,
    step_options,
)

GIB = 2**30
LABEL = 18


def training_lines(words: Sequence[str], gpus: int | None, card: Card) -> tuple[list[str], bool]:
    """The plan of a recipe.

    Args:
        words: after `emu fit`.
        gpus: cards; None for those of the recipe.
        card: which.

    Returns:
        Lines, and whether the recipe fits the card (always on processors).

    Raises:
        ValueError, FileNotFoundError: see `read_facts`.
    """
    facts = read_facts(words)
    lines = _of_model(facts)
    if facts.on_cpu and gpus is None:
        layout = recipe_layout(facts, 1)
        memory = run_memory(facts, step_options(facts, layout))
        parts = CardMemory(memory.weights, memory.gradients, memory.optimizer, 0, memory.activations, memory.peak)
        return [
            *lines,
            *_of_memory(parts),
            _row("", "computed tensor by tensor; time is not modelled on processors"),
        ], True
    cards = gpus or facts.processes
    planner = Planner(facts, card)
    own, best = planner.planned(recipe_layout(facts, cards)), planner.best(cards)
    fits = own.memory.total <= card.memory
    lines += [
        _row("cards", f"{cards} x {card.title}; what follows is a model of them, not measured"),
        *_of_memory(own.memory),
    ]
    lines.append(_row("", f"{_gib(card.memory)} on the card: " + ("it fits" if fits else "it does not fit")))
    lines += _of_time(own, facts)
    if best is None:
        lines.append(_row("layout", "none fits: take more cards, another card, or shorter rows (data.row_length)"))
    elif best.layout != own.layout:
        lines += [_row("a layout that fits" if not fits else "faster", _described(best.layout)), *_of_time(best, facts)]
        lines.append(_row("", f"{_gib(best.memory.total)} of {_gib(card.memory)}"))
    return lines, fits


def generation_lines(
    folder: str, size: Sequence[int] | None, frames: int | None, batch: int, guidance_scale: float | None, card: Card
) -> tuple[list[str], bool]:
    """The plan of drawing with a model; arguments and errors as of `drawing_plan`, result as of `training_lines`."""
    plan = drawing_plan(folder, size, frames, guidance_scale)
    total, most = plan.total(batch), plan.memory.fitting(1 << 20, int(card.memory) - plan.weights - plan.vision)
    rows = batch * (2 if plan.guided else 1)
    bound = plan.tokens * plan.weights / card.memory_bandwidth
    least = f"{bound:,.1f} s" if bound >= 0.1 else f"{1e3 * bound:.2g} ms"
    lines = [
        _row(
            "block",
            f"{' x '.join(map(str, plan.grid))} codes, {plan.tokens:,} tokens after up to {PROMPT} of a prompt; {rows} rows",
        ),
        _row("weights", f"{shown_bytes(plan.weights)} transformer, {shown_bytes(plan.vision)} vision tokenizer"),
        _row(
            "a block",
            f"{shown_bytes(plan.memory.sequence)} cache and work" + (", with its second row" if plan.guided else ""),
        ),
        _row("to pixels", shown_bytes(plan.memory.decoding)),
        _row(
            "in all", f"{shown_bytes(total)} with {batch} at a time, of {shown_bytes(card.memory)} on the {card.title}"
        ),
        _row("at most", f"{most:,} at a time"),
        _row("time", f"no less than {least} a batch: every token reads all weights once (a model, not measured)"),
    ]
    if PROMPT + plan.tokens > plan.positions:
        lines.append(_row("", f"longer than the model's {plan.positions:,} positions; expect poor results"))
    return lines, total <= card.memory


def _of_model(facts: RunFacts) -> list[str]:
    blocks, tables = num_parameters(facts.config)
    config = facts.config
    shape = f"{config.num_hidden_layers} blocks of width {config.hidden_size}, {config.vocab_size:,} ids"
    batches = f", in {facts.accumulation} batches" if facts.accumulation > 1 else ""
    return [
        _row("parameters", f"{blocks + tables:,}: blocks {blocks:,}, embedding and head {tables:,} ({shape})"),
        _row(
            "a step",
            f"{facts.rows * facts.accumulation:,} rows of {facts.row_length:,} = {facts.tokens_per_step:,} tokens{batches}",
        ),
    ]


def _of_memory(memory: CardMemory) -> list[str]:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "gathered": memory.gathered,
        "activations": memory.activations,
    }
    lines = [_row(f"  {name}", _gib(size)) for name, size in parts.items() if size]
    return [_row("memory", "of one process:"), *lines, _row("  at most", _gib(memory.total))]


def _of_time(plan: RunPlan, facts: RunFacts) -> list[str]:
    layout, steps = plan.layout, facts.max_steps
    sent = f"{shown_bytes(plan.sent)} a step and card, {plan.seconds_sending:,.2f} s if nothing hides it"
    each = plan.tokens_per_second / layout.cards
    lines = [
        _row("communication", sent if layout.cards > 1 else "none"),
        _row(
            "speed",
            f"{plan.tokens_per_second:,.0f} tokens a second, {each:,.0f} a card, at {UTILISATION:.0%} of its peak",
        ),
    ]
    if steps > 0:
        days = steps * plan.step_seconds / SECONDS_A_DAY
        total = steps * facts.tokens_per_step
        lines.append(_row("time", f"{days:,.2f} days for {steps:,} steps, {total / 1e9:,.2f} billion tokens"))
    return lines


def _described(layout: RunLayout) -> str:
    """A layout in the words of a recipe."""
    split = "weights split over the cards (ModelParallelStrategy)" if layout.sharded else "whole weights on each card"
    if layout.cards == 1:
        split = "one card"
    rows = f"{layout.rows * layout.cards:,} rows a batch, trainer.accumulate_grad_batches {layout.accumulation}"
    return f"{split}, {rows}, model.checkpointing {layout.checkpointing}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def _row(label: str, text: str) -> str:
    return f"{label:<{LABEL}}  {text}".rstrip()
