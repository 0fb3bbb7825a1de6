"""Captions as rules with stated odds: which attributes a caption names, in which words, and how often.

A rule is a pattern ("a {colour} {shape}") and the ways to fill it for a scene. All scenes are filled at once, as arrays; a caption is a
number, and its text is written only when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Attributes of all scenes: name -> (N,) int64."""


@dataclass(frozen=True)
class Filling:
    """One way to fill a pattern, for all scenes at once.

    Attributes:
        fields: what stands in each field of the pattern, (N,) int64 numbers of words.
        probability: of this filling given its rule, (N,) or one number for all; 0 where it does not hold.
    """

    fields: Columns
    probability: np.ndarray | float = 1.0


@dataclass(frozen=True)
class Rule:
    """A kind of caption.

    Attributes:
        name: what tables call it.
        weight: probability of the rule, whatever the scene.
        pattern: text with fields in braces.
        fill: columns -> fillings, whose probabilities sum to one for every scene; by default each field is the column of its name.
    """

    name: str
    weight: float
    pattern: str
    fill: Callable[[Columns], Sequence[Filling]] | None = None

    @property
    def field_names(self) -> tuple[str, ...]:
        """Fields of the pattern, in order."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.pattern) if name is not None)

    def fillings(self, columns: Columns) -> list[Filling]:
        """All ways to fill the pattern."""
        if self.fill is None:
            return [Filling({name: columns[name] for name in self.field_names})]
        return list(self.fill(columns))


class CaptionTable:
    """Captions of all scenes under some rules.

    Args:
        rules: their weights sum to one.
        words: words of each field, by name of the field.
        columns: attributes of the scenes.

    Attributes:
        ids: (N, K) int64 numbers of the captions that a scene can have.
        probability: (N, K) float64 odds given the scene, rows sum to one.
        rule_of_option: (K,) int64 the rule that each column of the two comes from.

    Raises:
        ValueError: the odds of the rules or of the fillings of a scene do not sum to one.
    """

    def __init__(self, rules: Sequence[Rule], words: Mapping[str, Sequence[str]], columns: Columns) -> None:
        self.rules = tuple(rules)
        self.words = {name: tuple(some) for name, some in words.items()}
        self._num_scenes = len(next(iter(columns.values())))
        self._radices = [[len(self.words[name]) for name in rule.field_names] for rule in self.rules]
        sizes = [int(np.prod(radices, dtype=np.int64)) for radices in self._radices]
        # Captions are numbered rule after rule, and no two rules share a number even where their texts are equal.
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        ids, odds, owner = [], [], []
        for number, rule in enumerate(self.rules):
            for filling in rule.fillings(columns):
                ids.append(self._number(number, [filling.fields[name] for name in rule.field_names]))
                odds.append(np.broadcast_to(rule.weight * np.asarray(filling.probability, float), ids[-1].shape))
                owner.append(number)
        self.ids = np.stack(ids, axis=1)
        self.probability = np.stack(odds, axis=1)
        self.rule_of_option = np.array(owner)
        self._check()

    def _number(self, rule: int, fields: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers of captions: the words of the fields as digits of mixed radices, after all captions of earlier rules."""
        number = np.zeros(self._num_scenes, np.int64)
        for radix, field in zip(self._radices[rule], fields, strict=True):
            number = number * radix + field
        return number + self._first[rule]

    def _check(self) -> None:
        weights = sum(rule.weight for rule in self.rules)
        if abs(weights - 1) > 1e-9:
            odds = {rule.name: rule.weight for rule in self.rules}
            raise ValueError(f"the weights of the caption rules sum to {weights:.6g}, not to 1: {odds}")
        total = self.probability.sum(axis=1)
        wrong = np.abs(total - 1) > 1e-9
        if wrong.any() or (self.probability < 0).any():
            scene = int(np.argmax(np.abs(total - 1)))
            raise ValueError(
                f"the captions of {int(wrong.sum())} scenes have probabilities that do not sum to one, e.g. {total[scene]:.6g} for scene "
                f"{scene}; check the fillings of the rules {[rule.name for rule in self.rules]}"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def rule_of(self, ids: np.ndarray) -> np.ndarray:
        """Number of the rule of each caption."""
        return np.searchsorted(self._first, ids, side="right") - 1

    def text(self, caption: int) -> str:
        """The words of a caption."""
        rule = int(self.rule_of(np.array(caption)))
        rest, fields = int(caption - self._first[rule]), {}
        # The last field is the lowest digit, so that the fields come off from the last to the first.
        for name, radix in zip(reversed(self.rules[rule].field_names), reversed(self._radices[rule]), strict=True):
            rest, digit = divmod(rest, radix)
            fields[name] = self.words[name][digit]
        return self.rules[rule].pattern.format(**fields)
