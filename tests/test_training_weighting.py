"""How much text, controls and codes count in the loss."""

import csv

import pytest
import torch

from emu.training.meters import TokenKinds
from emu.training.weighting import LossWeighting, weigh
from tests.training_toys import VOCABULARY, run, write_recipe

KINDS = TokenKinds(VOCABULARY)
FIRST = VOCABULARY.ranges["vision"][0]


def batch(texts=5, codes=40):
    ids = torch.cat([torch.arange(texts) % 4, FIRST + torch.arange(codes) % 8])[None]
    return ids, torch.ones(ids.shape)


def total(weights, ids, kind):
    return float(weights[KINDS(ids) == KINDS.names.index(kind)].sum())


def test_a_kind_counts_by_its_factor_and_other_kinds_keep_their_weight():
    ids, weights = batch()
    found = weigh(ids, weights, KINDS, LossWeighting({"vision": 0.5}))
    assert total(found, ids, "vision") == 20 and total(found, ids, "text") == 5


@pytest.mark.parametrize(("texts", "codes"), [(5, 40), (1, 63), (30, 2)])
def test_means_of_kinds_count_alike_whatever_their_numbers_of_tokens(texts, codes):
    ids, weights = batch(texts, codes)
    found = weigh(ids, weights, KINDS, LossWeighting(mean="kinds"))
    assert total(found, ids, "vision") == pytest.approx(total(found, ids, "text"), rel=1e-5)
    assert float(found.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)


def test_factors_scale_the_means_of_kinds():
    ids, weights = batch()
    found = weigh(ids, weights, KINDS, LossWeighting({"vision": 0.5}, mean="kinds"))
    assert total(found, ids, "vision") == pytest.approx(total(found, ids, "text") / 2, rel=1e-5)


def test_tokens_that_weigh_nothing_stay_so():
    ids, weights = batch()
    weights[0, :10] = 0
    assert (weigh(ids, weights, KINDS, LossWeighting({"vision": 2.0}, mean="kinds"))[0, :10] == 0).all()


def test_a_step_without_any_weight_stays_finite():
    ids, weights = batch()
    assert (weigh(ids, 0 * weights, KINDS, LossWeighting(mean="kinds")) == 0).all()


def test_a_recipe_sets_it_and_the_loss_follows(tmp_path):
    losses = []
    for number, words in enumerate(([], ["--model.weighting.kinds", "{vision: 0.0}"])):
        (folder := tmp_path / str(number)).mkdir()
        run(write_recipe(folder), "--trainer.max_steps", 1, *words)
        row = next(csv.DictReader((folder / "run" / "metrics.csv").open()))
        losses.append((float(row["train/loss"]), "train/loss/text" in row, "train/loss/vision" in row))
    (plain, *_), (words_alone, text, vision) = losses
    assert plain != words_alone and text and not vision, "codes of weight zero are not predicted"


def test_an_unknown_kind_and_a_negative_factor_are_refused_before_the_first_step(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(ValueError, match="sound.*text, control, vision"):
        run(recipe, "--model.weighting.kinds", "{sound: 1.0}")
    assert LossWeighting({"vision": -1.0}).problems() == ["weighting.kinds.vision is -1.0; expected 0 or more"]
