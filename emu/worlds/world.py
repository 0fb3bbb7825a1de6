"""Worlds: distributions over documents whose probabilities are known exactly.

A world is a finite table of hidden states with odds, and captions with odds given the state. What a document shows of a state (the
picture, the caption, the boxes, the first frames of a clip) is a *variable*, a number per state or per state and caption. A task asks for
one variable given another, so the exact probability of every answer, and the entropy that no model can beat, follow by summing the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emu.randomness import key_of, uniforms
from emu.worlds.caption_table import CaptionTable, Columns, Rule
from emu.worlds.table import Attribute, ConditionalTable

TRAIN, HELD_OUT, COMBINATIONS = "train", "held_out", "combinations"
SPLITS = (TRAIN, HELD_OUT, COMBINATIONS)


@dataclass(frozen=True)
class Task:
    """A question with an exact answer.

    Attributes:
        name: what tables call it.
        given: variable that the prompt shows.
        target: variable that is asked for.
    """

    name: str
    given: str
    target: str


@dataclass(frozen=True)
class Draws:
    """Documents of a world.

    Attributes:
        world: where they come from.
        rows: (n,) int64 hidden states.
        options: (n,) int64 which caption of the state.
        split: the split they were drawn from.
    """

    world: World
    rows: np.ndarray
    options: np.ndarray
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice | np.ndarray) -> Draws:
        return Draws(self.world, self.rows[some], self.options[some], self.split)

    def values(self, variable: str) -> np.ndarray:
        """(n,) int64 numbers of a variable."""
        table = self.world.variables[variable]
        return table[self.rows] if table.ndim == 1 else table[self.rows, self.options]

    @property
    def captions(self) -> list[str]:
        """The texts."""
        return [self.world.captions.text(caption) for caption in self.values("caption").tolist()]


class World:
    """A distribution over documents.

    A world of your own gives these arguments, and `render` and `grade` where it has pictures. Everything else follows from the table.

    Args:
        name: chooses the stream of random numbers, together with the seed.
        columns: attributes of the N hidden states, name -> (N,) int64.
        probability: (N,) odds of the states, summing to one.
        rules: kinds of captions, with weights that sum to one.
        words: words of each field of the captions' patterns.
        variables: what documents show of a state, name -> (N,) int64; the variable "caption" is added.
        tasks: questions about the variables.
        held_out: (N,) bool, states that training never shows: the held-out combinations.
        attributes: what of a target may be tested against its true odds: variable -> name -> attribute.

    Raises:
        ValueError: probabilities are negative or do not sum to one, lengths differ, or a task names an unknown variable.
    """

    prompt_kinds: tuple[str, ...] = ("all",)
    """Names of the kinds of prompts that suites tell apart."""

    def __init__(
        self,
        name: str,
        columns: Columns,
        probability: np.ndarray,
        rules: Sequence[Rule],
        words: Mapping[str, Sequence[str]],
        variables: Mapping[str, np.ndarray],
        tasks: Sequence[Task],
        held_out: np.ndarray | None = None,
        attributes: Mapping[str, Mapping[str, Attribute]] | None = None,
    ) -> None:
        self.name = name
        self.columns = {key: np.asarray(column, np.int64) for key, column in columns.items()}
        self.probability = np.asarray(probability, np.float64)
        self.held_out = np.zeros(len(self.probability), bool) if held_out is None else np.asarray(held_out, bool)
        self._check(variables, tasks)
        self.captions = CaptionTable(rules, words, self.columns)
        self.variables = {key: np.asarray(value, np.int64) for key, value in variables.items()}
        self.variables["caption"] = self.captions.ids
        self.tasks = {task.name: task for task in tasks}
        self.attributes: dict[str, dict[str, Attribute]] = {
            variable: dict(some) for variable, some in (attributes or {}).items()
        }
        self.attributes.setdefault("caption", {"template": self.captions.rule_of(np.arange(len(self.captions)))})
        self._tables: dict[tuple[str, ...], ConditionalTable] = {}

    def _check(self, variables: Mapping[str, np.ndarray], tasks: Sequence[Task]) -> None:
        total = float(self.probability.sum())
        if abs(total - 1) > 1e-9 or not (self.probability >= 0).all():
            raise ValueError(
                f"the scenes of world {self.name!r} have probabilities that sum to {total:.9g} (smallest "
                f"{float(self.probability.min(initial=0)):.3g}); they must be 0 or more and sum to 1"
            )
        lengths = {key: len(value) for key, value in {**self.columns, **variables, "held_out": self.held_out}.items()}
        wrong = {key: length for key, length in lengths.items() if length != len(self.probability)}
        if wrong:
            raise ValueError(f"world {self.name!r} has {len(self.probability)} scenes, but {wrong} entries in these")
        for task in tasks:
            for variable in (task.given, task.target):
                if variable not in {*variables, "caption"}:
                    raise ValueError(
                        f"task {task.name!r} names the variable {variable!r}; there are {sorted({*variables, 'caption'})}"
                    )

    def task(self, name: str) -> Task:
        """The task of this name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.tasks:
            raise ValueError(f"world {self.name!r} has no task {name!r}; it has {sorted(self.tasks)}")
        return self.tasks[name]

    def distribution(self, split: str) -> np.ndarray:
        """(N,) odds of the states under a split.

        `train` and `held_out` follow one distribution (everything but the held-out combinations) through streams of their own, so that
        a model that learned it exactly has no excess on either; `combinations` draws only what training never shows.

        Raises:
            ValueError: there is no such split, or the world has no held-out combinations.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {SPLITS}")
        return self._distributions[split == COMBINATIONS]

    @cached_property
    def _distributions(self) -> tuple[np.ndarray, np.ndarray]:
        seen = np.where(self.held_out, 0.0, self.probability)
        rest = self.probability - seen
        return seen / seen.sum(), rest / rest.sum() if self.held_out.any() else rest

    def draw(
        self, seed: int, n: int, split: str = TRAIN, *, start: int = 0, rules: Sequence[str] | None = None
    ) -> Draws:
        """Documents start .. start + n - 1 of an endless stream, a pure function of (seed, split, number).

        Args:
            seed: chooses the stream.
            n: number of documents.
            split: "train", "held_out" or "combinations".
            start: number of the first one.
            rules: names of the caption rules to draw from; by default all, with their weights.

        Raises:
            ValueError: an unknown split or rule, n below 1, or a split that is empty.
        """
        if n < 1 or start < 0:
            raise ValueError(
                f"{n} documents from number {start}; expected at least one document and a number of 0 or more"
            )
        if self.distribution(split).sum() == 0:
            raise ValueError(f"world {self.name!r} has no held-out combinations; its split {split!r} is empty")
        # Two numbers for each document, whatever its state: document i is then the same in every call that holds it.
        noise = uniforms(key_of(self.name, split, seed), start, n, 2)
        rows = np.searchsorted(self._cumulative[split == COMBINATIONS], noise[:, 0], side="right")
        odds = self.captions.probability[rows] * self._options(rules)  # (n, K)
        steps = odds.cumsum(axis=1)
        # Scaled to the row's sum, which is below 1 where `rules` leaves some captions out.
        options = (steps <= noise[:, 1:] * steps[:, -1:]).sum(axis=1)
        return Draws(self, rows, options, split)

    @cached_property
    def _cumulative(self) -> tuple[np.ndarray, np.ndarray]:
        sums = [odds.cumsum() for odds in self._distributions]
        for some in sums:
            # The sum may end a rounding error below 1, and a number above it would lead past the last possible state.
            last = np.flatnonzero(np.diff(some, prepend=0.0))[-1:]
            if len(last):
                some[last[0] :] = 1.0
        return sums[0], sums[1]

    def _options(self, rules: Sequence[str] | None) -> np.ndarray:
        names = [rule.name for rule in self.captions.rules]
        if rules is None:
            return np.ones(len(self.captions.rule_of_option))
        unknown = sorted(set(rules) - set(names))
        if unknown or not rules:
            raise ValueError(f"no caption rules {unknown}; world {self.name!r} has {names}")
        wanted = np.array([name in set(rules) for name in names], np.float64)
        return wanted[self.captions.rule_of_option]

    def table(self, target: str, given: str, *, full: bool = False) -> ConditionalTable:
        """Exact joint probabilities of two variables: what training shows of them, or all with `full`."""
        key = (target, given, str(full))
        if key not in self._tables:
            states = self.probability if full else self.distribution(TRAIN)
            values = [self.variables[target], self.variables[given]]
            if any(value.ndim == 2 for value in values):
                weights = states[:, None] * self.captions.probability
                values = [
                    np.broadcast_to(value if value.ndim == 2 else value[:, None], weights.shape) for value in values
                ]
            else:
                weights = states
            self._tables[key] = ConditionalTable(values[0].ravel(), values[1].ravel(), weights.ravel())
        return self._tables[key]

    def log2_probability(self, task: str, target: np.ndarray, given: np.ndarray, *, full: bool = False) -> np.ndarray:
        """Exact log2 P(target | given) of a task.

        Args:
            task: name of the task.
            target: (n,) int64 numbers of the target variable.
            given: (n,) int64 numbers of the given variable.
            full: whether the held-out combinations are part of the distribution; by default it is that of training.

        Returns:
            (n,) float64, -inf where the target is impossible.

        Raises:
            ValueError: a given value never occurs.
        """
        question = self.task(task)
        return self.table(question.target, question.given, full=full).log2_probability(target, given)

    def exact_bits(self, task: str, draws: Draws) -> np.ndarray:
        """(n,) float64 bits that the best model spends on the targets of these documents.

        Held-out combinations are measured against the distribution that includes them.
        """
        question = self.task(task)
        values = draws.values(question.target), draws.values(question.given)
        return -self.log2_probability(task, *values, full=draws.split == COMBINATIONS)

    def floor(self, task: str) -> float:
        """Entropy of the target given the prompt, in bits a document: no model's mean can be lower."""
        question = self.task(task)
        return self.table(question.target, question.given).entropy()

    def attribute_odds(self, task: str, attribute: str, given: np.ndarray) -> np.ndarray:
        """Exact odds of an attribute of the target.

        Args:
            task: name of the task.
            attribute: one of `attributes` of the task's target.
            given: (n,) int64 numbers of the given variable.

        Returns:
            (n, number of values) float64; a row of zeros for prompts whose targets have no such attribute.

        Raises:
            ValueError: the target has no such attribute.
        """
        question = self.task(task)
        values = self.attribute_of(question.target, attribute)
        return self.table(question.target, question.given).reduced(values, given)

    def attribute_of(self, variable: str, attribute: str) -> Attribute:
        """An attribute of a variable.

        Raises:
            ValueError: the variable has no such attribute.
        """
        known = self.attributes.get(variable, {})
        if attribute not in known:
            raise ValueError(
                f"{variable!r} of world {self.name!r} has no attribute {attribute!r}; it has {sorted(known)}"
            )
        return known[attribute]

    def attribute_values(self, task: str, attribute: str, target: np.ndarray, given: np.ndarray) -> np.ndarray:
        """(n,) int64 values of an attribute of targets, -1 where a target has none; raises as `attribute_of` does."""
        values = self.attribute_of(self.task(task).target, attribute)
        if callable(values):
            return np.where(target >= 0, values(np.maximum(target, 0), given), -1)
        return np.where((target >= 0) & (target < len(values)), values[np.clip(target, 0, len(values) - 1)], -1)

    def kinds_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """(n,) int64 kinds of prompts (n,), -1 for none."""
        return np.zeros(len(given), np.int64)

    def floors(self, task: str) -> dict[str, float]:
        """Entropy of the target given prompts of each kind that training shows, in bits a document, by name of the kind."""
        question = self.task(task)
        table = self.table(question.target, question.given)
        kind, entropy = self.kinds_of(task, table.given_values), table.entropies()
        some = [kind == number for number in range(len(self.prompt_kinds))]
        return {
            name: float((table.marginal * entropy)[mask].sum() / table.marginal[mask].sum())
            for name, mask in zip(self.prompt_kinds, some, strict=True)
            if mask.any()
        }

    def parts(self, variable: str, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """What a document shows for values of a variable, in order.

        Returns:
            (variable that has a form of its own: "caption", "picture", "clip" or "boxes"; its (n,) numbers) of each part.
        """
        return [(variable, numbers)]

    def render(self, rows: np.ndarray, size: int) -> np.ndarray:
        """uint8 pictures (n, size, size, 3) or clips (n, T, size, size, 3) of hidden states."""
        raise NotImplementedError(f"world {self.name!r} renders nothing")

    def grade(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `render`: (n,) int64 numbers of the picture variable, -1 where a picture shows no scene of this world."""
        raise NotImplementedError(f"world {self.name!r} grades nothing")

    def fingerprint(self) -> str:
        """Digest of the distribution: worlds of equal fingerprints have equal floors."""
        digest = hashlib.sha256(self.name.encode())
        for part in (self.probability, self.held_out, self.captions.ids, self.captions.probability):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]
