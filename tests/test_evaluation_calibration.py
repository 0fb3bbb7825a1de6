"""The harness on models that are exact by construction, and on the same models broken on purpose: the first pass, the others are caught."""

import numpy as np
import pytest

from emu.evaluation.calibration import check_batch_independence, measure_attributes, score_task
from emu.worlds import HELD_OUT, moving, shapes


class ExactModel:
    """Draws the cells of a picture one by one from their exact odds given the cells so far, as a perfect transformer would."""

    def __init__(self, world, task, tokens, guidance=1.0, top_k=0, sees_ahead=False, sees_neighbour=False):
        self.world, self.task, self.tokens = world, task, tokens
        self.guidance, self.top_k, self.sees_ahead, self.sees_neighbour = guidance, top_k, sees_ahead, sees_neighbour
        question = world.task(task)
        self.table = world.table(question.target, question.given)
        self.free = np.bincount(self.table.target, self.table.joint, minlength=len(tokens))

    def law(self, given):
        odds = np.zeros(len(self.tokens))
        targets, some = self.table.outcomes(given)
        odds[targets] = some
        return odds

    def next_odds(self, cell, conditional, free):
        width = self.tokens.max() + 1
        odds, base = (
            np.bincount(self.tokens[:, cell], w, minlength=width) / max(w.sum(), 1e-300) for w in (conditional, free)
        )
        if self.guidance != 1:
            odds = np.where(odds > 0, odds**self.guidance * np.maximum(base, 1e-12) ** (1 - self.guidance), 0)
        if self.top_k:
            odds = np.where(odds >= np.sort(odds)[-self.top_k], odds, 0)
        return odds / odds.sum()

    def sample(self, task, given, seed):
        rng = np.random.default_rng(seed)
        found = np.zeros(len(given), np.int64)
        for i, one in enumerate(given):
            conditional, free = self.law(one), self.free
            for cell in range(self.tokens.shape[1]):
                token = rng.choice(self.tokens.max() + 1, p=self.next_odds(cell, conditional, free))
                kept = self.tokens[:, cell] == token
                conditional, free = conditional * kept, free * kept
            found[i] = np.flatnonzero(conditional)[0]
        return found

    def score(self, task, draws):
        question = self.world.task(task)
        targets, given = draws.values(question.target), draws.values(question.given)
        return np.array([self._bits(targets[i], given[i], given[i - 1]) for i in range(len(targets))])

    def _bits(self, target, given, neighbour):
        odds, bits, last = self.law(given), 0.0, self.tokens.shape[1] - 1
        if self.sees_neighbour:
            odds = (odds + self.law(neighbour)) / 2
        for cell in range(last + 1):
            known = odds
            if self.sees_ahead and cell < last:
                known = odds * (self.tokens[:, cell + 1] == self.tokens[target, cell + 1])
            kept = self.tokens[:, cell] == self.tokens[target, cell]
            bits -= np.log2((known * kept).sum() / known.sum())
            odds = odds * kept
        return bits


def model_of(**options):
    return ExactModel(shapes(1), "text-to-image", shapes(1).cells, **options)


def measured(model, n=600, seed=1):
    return measure_attributes(model.world, model.task, model.sample, ["place", "size"], n, seed=seed, rules=["plain"])


def test_the_exact_model_has_no_excess_and_keeps_documents_apart():
    model = model_of()
    found = score_task(model.world, model.task, model.score, 60)
    assert abs(found.excess.value) < 1e-9 and not found.impossible
    assert found.model.value == pytest.approx(found.exact)
    assert check_batch_independence(model.task, model.score, model.world.draw(0, 5, HELD_OUT)) < 1e-9


def test_an_ancestral_sampler_at_guidance_1_passes():
    for found in measured(model_of()):
        assert found.test.p_value > 1e-3 and found.legal.value == 1
        assert sum(found.observed) == pytest.approx(1) and sum(found.expected) == pytest.approx(1)


def test_guidance_3_is_caught():
    """Guidance sharpens step by step what the prompt already says, and with it the odds of when the object appears."""
    place, _ = measured(model_of(guidance=3.0))
    assert place.test.p_value < 1e-6 and place.legal.value == 1


def test_a_broken_top_k_is_caught():
    place, size = measured(model_of(top_k=2))
    assert min(place.test.p_value, size.test.p_value) < 1e-6


def test_a_broken_causal_mask_is_caught():
    model = model_of(sees_ahead=True)
    found = score_task(model.world, model.task, model.score, 60)
    assert found.impossible and found.excess.high < 0


def test_a_broken_document_mask_is_caught():
    model = model_of(sees_neighbour=True)
    found = score_task(model.world, model.task, model.score, 60)
    assert found.excess.low > 0.3
    with pytest.raises(ValueError, match="documents of a row see each other"):
        check_batch_independence(model.task, model.score, model.world.draw(0, 5, HELD_OUT))


def test_turns_of_a_ball_follow_their_odds_only_where_they_should():
    world = moving()

    def sample(task, given, seed):
        table, rng = world.table("clip", "beginning"), np.random.default_rng(seed)
        found = [table.outcomes(one) for one in given]
        return np.array([rng.choice(targets, p=odds) for targets, odds in found])

    def never_turns(task, given, seed):
        table = world.table("clip", "beginning")
        return np.array([targets[odds.argmax()] for targets, odds in map(table.outcomes, given)])

    (good,) = measure_attributes(world, "continuation", sample, ["turns"], 2000)
    (bad,) = measure_attributes(world, "continuation", never_turns, ["turns"], 2000)
    assert good.test.p_value > 1e-3 and bad.test.p_value < 1e-6


def test_impossible_answers_are_counted_apart():
    world = shapes(1)

    def sample(task, given, seed):
        target = model_of().sample(task, given, seed)
        return np.where(np.arange(len(target)) % 10 == 0, -1, target)

    found = measure_attributes(world, "text-to-image", sample, ["place"], 400, rules=["plain"])[0]
    assert found.legal.value == pytest.approx(0.9) and found.test.count == 360 and found.test.p_value > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_task(shapes(1), "text-to-image", model_of().score, 10), "30 are needed"),
        (lambda: score_task(shapes(1), "text-to-video", model_of().score), "has no task"),
        (lambda: score_task(shapes(1), "text-to-image", lambda task, draws: np.zeros(3), 60), "expected one number"),
        (
            lambda: measure_attributes(shapes(1), "text-to-image", None, ["place"], 40, rules=["plain"]),
            "about 88 are needed",
        ),
        (lambda: measure_attributes(shapes(1), "text-to-image", None, ["weight"], 400), "has no attribute"),
        (
            lambda: measure_attributes(shapes(1), "text-to-image", None, ["colour"], 400, rules=["plain"]),
            "nothing of 'colour' free",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_work(call, message):
    with pytest.raises(ValueError, match=message):
        call()
