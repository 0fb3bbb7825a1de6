"""Clips longer than those of training: what is measured of them, on balls that roll as the world says and on some that do not."""

import argparse

import numpy as np
import pytest

from emu import MultimodalTokenizer
from emu.evaluation import clip_lengths
from emu.evaluation.clip_lengths import excess_beyond, measure_length, moves_beyond, moves_test, places_of
from emu.evaluation.suites import find_suite
from emu.worlds import moving, tiles
from emu.worlds.moving import roll, turn_odds
from emu.worlds.scene_documents import WorldDocuments
from tests.test_evaluation_models import tiny_model


@pytest.fixture(scope="module")
def documents():
    return WorldDocuments(moving(), MultimodalTokenizer.from_pretrained("shapes"))


def rolling(n, steps, odds, seed=0):
    """(n, steps) cells of balls that turn with these odds."""
    chance = np.random.default_rng(seed)
    turned = (chance.random((n, steps - 2)) < odds).astype(np.int64)
    return roll(chance.integers(16, size=n), chance.integers(4, size=n), turned)


def test_true_motion_passes_and_another_share_of_turns_does_not():
    found, legal = moves_beyond(rolling(400, 16, 0.3), 4)
    assert len(found) == 400 * 12 and legal.all() and moves_test(found).p_value > 0.001
    assert moves_test(moves_beyond(rolling(400, 16, 0.4), 4)[0]).p_value < 1e-6


def test_odds_that_are_right_on_average_alone_do_not_pass():
    """Turns that come oftener in one half of the picture and more rarely in the other."""
    states = np.random.default_rng(0).integers(64, size=8000)
    odds = np.where(states < 32, 0.4, 0.2)
    found = np.stack([states, np.random.default_rng(1).random(8000) < odds], 1)
    assert abs(found[:, 1].mean() - 0.3) < 0.02 and moves_test(found).p_value < 1e-6


def test_moves_that_the_world_does_not_make_are_counted_apart():
    places = rolling(50, 8, 0.3)
    places[:, 6] = places[:, 5]  # stands still
    found, legal = moves_beyond(places, 4)
    assert (~legal).sum() == len(found) == legal.sum() == 2 * 50  # nothing shows where it heads afterwards


def test_a_place_is_that_of_the_balls_own_colour_alone():
    ball = tiles.kind_of(np.zeros(2, int), np.array([1, 2]), np.ones(2, int))
    cells = np.zeros((2, 3, 16), int)
    cells[:, :, 5] = ball[:, None]
    cells[1, 1, 6], cells[1, 2, 5] = ball[1], ball[0]
    assert places_of(cells, np.array([1, 2])).tolist() == [[5, 5, 5], [5, -1, -1]]


def test_a_model_that_knows_the_odds_has_no_excess_beyond_the_trained_length(documents, monkeypatch):
    """The scorer is the world itself: it reads the clip in the document and looks its last two moves up."""
    world = documents.world
    known = {tuple(codes.flatten().tolist()): number for number, codes in zip(*map_of(documents), strict=True)}
    places = dict(zip(world.variables["clip"].tolist(), world.places.tolist(), strict=True))

    def exact(model, asked):
        bits = []
        for document in asked:
            (clip,) = [s for s in documents.tokenizer.layout.parse(document.ids) if hasattr(s, "codes")]
            path = np.array([places[known[tuple(clip.codes.flatten().tolist())]]])
            assert int((document.weights > 0).sum()) == clip.codes[2:].numel()
            heading = clip_lengths.heading_of(path[:, 0], path[:, 1])
            fits = [t for t in np.ndindex(2, 2) if (roll(path[:, 0], heading, np.array([t]))[0] == path[0]).all()]
            bits.append(-np.log2(turn_odds(np.array(fits))).min())
        return np.array(bits)

    monkeypatch.setattr(clip_lengths, "document_bits", exact)
    found = excess_beyond(None, documents, 40, 16, 0)
    assert found.value == pytest.approx(0, abs=1e-9) and found.high - found.low < 1e-6


def map_of(documents):
    clips = np.unique(documents.world.variables["clip"])
    return clips.tolist(), documents.codes("clip", clips)


def test_an_untrained_model_is_measured_to_the_end_and_found_wanting(documents):
    found = measure_length(tiny_model(documents.tokenizer.vocabulary), documents, 2, 30, 8)
    assert found.identity.value < 0.5 and found.beyond.value > 1 and len(found.adjusted) == 3


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_that_is_none_is_refused_before_work(length, tmp_path, monkeypatch, documents):
    suite = find_suite("video")
    monkeypatch.setattr(type(suite).__mro__[1], "prepare", lambda self, request: None)
    with pytest.raises(ValueError, match=f"--length is {length}; expected 1 or more"):
        suite.prepare(argparse.Namespace(length=length))
