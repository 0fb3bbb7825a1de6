"""Worlds of requests: floors against plain enumeration, answers judged cell by cell, and what documents show."""

from collections import defaultdict
from math import log2

import numpy as np
import pytest

from emu.worlds import COMBINATIONS, HELD_OUT, RequestWorld, editing, examples, fills, moving, rates, tiles
from emu.worlds.examples import BY_EXAMPLE, EDITS, WITHOUT
from emu.worlds.rates import NUM_STEPS
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES

MAKERS = {
    "edit-one": lambda: editing(1),
    "edit-two": lambda: editing(2),
    "examples": examples,
    "fill-one": lambda: fills(1),
    "fill-two": lambda: fills(2),
}
DIRECTIONS = {"up": -LATTICE, "left": -1, "down": LATTICE, "right": 1}


def prompts_of(world, count, split=HELD_OUT, seed=5):
    task = next(iter(world.tasks.values()))
    draws = world.draw(seed, count, split)
    return task.name, draws.values(task.given), draws.values(task.target), draws


def enumerated_entropy(world, task):
    """H(target | given) summed over hidden states and captions one by one, without the world's tables."""
    question = world.task(task)
    joint, marginal = defaultdict(float), defaultdict(float)
    states = world.distribution("train")
    for row in np.flatnonzero(states):
        for option, share in enumerate(world.captions.probability[row]):
            values = [world.variables[name] for name in (question.given, question.target)]
            given, target = (int(value[row] if value.ndim == 1 else value[row, option]) for value in values)
            joint[given, target] += states[row] * share
            marginal[given] += states[row] * share
    return -sum(odds * log2(odds / marginal[given]) for (given, _), odds in joint.items() if odds)


def edited_by_hand(cells, words):
    """All pictures that an instruction may lead to, with their odds, by reading its words."""
    filled = [place for place in range(16) if cells[place]]
    free = [place for place in range(16) if not cells[place]]

    def number(shape, colour, size):
        return 1 + (shape * len(COLOURS) + colour) * 2 + size

    def named(text):
        if text == "it":
            return filled[0]
        colour, shape = text.removeprefix("the ").split()
        wanted = number(SHAPES.index(shape), COLOURS.index(colour), 0)
        (place,) = [place for place in filled if (cells[place] - 1) // 2 == (wanted - 1) // 2]
        return place

    def changed(**at):
        copy = list(cells)
        for place, kind in at.items():
            copy[int(place[1:])] = kind
        return tuple(copy)

    first, *rest = words.split()
    if words == "remove one object":
        return {changed(**{f"p{place}": 0}): 1 / len(filled) for place in filled}
    if first == "remove":
        return {changed(**{f"p{named(' '.join(rest))}": 0}): 1.0}
    if first == "enlarge":
        place = named(" ".join(rest))
        return {changed(**{f"p{place}": cells[place] + 1}): 1.0}
    if first == "make":
        place = named(" ".join(rest[:-1]))
        shape, _, size = tiles.attributes_of(np.array(cells[place]))
        return {changed(**{f"p{place}": number(int(shape), COLOURS.index(rest[-1]), int(size))}): 1.0}
    if first == "move":
        place = named(" ".join(rest[:-1]))
        targets = free if rest[-1] == "elsewhere" else [place + DIRECTIONS[rest[-1]]]
        return {changed(**{f"p{place}": 0, f"p{to}": cells[place]}): 1 / len(targets) for to in targets}
    _, colour, shape = rest
    kinds = [(number(SHAPES.index(shape), COLOURS.index(colour), size), odds) for size, odds in ((0, 0.7), (1, 0.3))]
    return {changed(**{f"p{place}": kind}): odds / len(free) for place in free for kind, odds in kinds}


@pytest.mark.parametrize("name", ["edit-one", "edit-two"])
@pytest.mark.parametrize("split", [HELD_OUT, COMBINATIONS])
def test_what_words_may_lead_to_is_what_reading_them_gives(name, split):
    world = MAKERS[name]()
    task, given, _, draws = prompts_of(world, 60, split)
    table = world.table("edited", "request", full=True)
    for prompt, words in zip(given.tolist(), draws.captions, strict=True):
        targets, odds = table.outcomes(prompt)
        found = dict(zip(map(tuple, world.cells[targets].tolist()), odds, strict=True))
        source = world.cells[world.sources_of(task, np.array([prompt]))][0]
        expected = edited_by_hand(source.tolist(), words)
        assert found.keys() == expected.keys()
        assert all(found[cells] == pytest.approx(expected[cells]) for cells in expected)


def test_floors_of_edits_are_what_the_words_leave_free():
    one, two = editing(1).floors("edit"), editing(2).floors("edit")
    size = -0.7 * log2(0.7) - 0.3 * log2(0.3)
    assert one == pytest.approx(
        {"recolour": 0, "move": 0, "elsewhere": log2(15), "enlarge": 0, "add": log2(15) + size, "remove": 0}
    )
    assert two == pytest.approx({"recolour": 0, "move": 0, "enlarge": 0, "remove": 0, "remove one": 1}, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "task"),
    [("fill-one", "fill"), ("rates", "text-to-video"), ("rates", "continuation"), ("examples", WITHOUT)],
)
def test_floors_are_those_of_a_plain_enumeration(name, task):
    world = {**MAKERS, "rates": rates}[name]()
    assert world.floor(task) == pytest.approx(enumerated_entropy(world, task), abs=1e-9)


def test_hidden_cells_follow_from_all_scenes_that_show_the_rest():
    world = fills(2)
    task, given, picture, draws = prompts_of(world, 5)
    rule = world.captions.rules[0]
    assert rule.name == "named"
    seen, unseen = world.distribution("train"), world.held_out
    for prompt, number, row, option in zip(given, picture, draws.rows, draws.options, strict=True):
        hidden, rest = world.hidden_cells(np.array([prompt]))[0], world.rest_of(np.array([prompt]))[0]
        assert (world.cells[number][~hidden] == rest[~hidden]).all()
        same = (world.cells[:, ~hidden] == rest[~hidden]).all(axis=1)  # all scenes that show the rest
        rows = world.columns["rectangle"][row] * len(world.cells) + np.flatnonzero(same)
        if option == 0:
            rows = rows[world.variables["caption"][rows, 0] == world.variables["caption"][row, 0]]
        odds = seen[rows] * ~unseen[rows]
        targets, found = world.table("picture", "request").outcomes(int(prompt))
        assert (np.sort(world.variables["picture"][rows[odds > 0]]) == targets).all()
        np.testing.assert_allclose(found, odds[odds > 0] / odds.sum())


@pytest.mark.parametrize("name", list(MAKERS))
def test_true_answers_are_right_and_keep_what_had_to_stay(name):
    world = MAKERS[name]()
    for split in (HELD_OUT, *([COMBINATIONS] if world.held_out.any() else [])):
        task, given, target, _ = prompts_of(world, 100, split)
        verdict = world.judge(task, given, world.cells[target])
        assert verdict.right.all() and verdict.kept.all()


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_change_of_any_cell_that_had_to_stay_is_wrong(name):
    world = MAKERS[name]()
    task, given, target, _ = prompts_of(world, 15)
    kinds = np.arange(tiles.NUM_KINDS)
    for prompt, number in zip(given, target, strict=True):
        for place in np.flatnonzero(world.stays(task, np.array([prompt]))[0]):
            others = kinds[kinds != world.cells[number, place]]
            cells = np.repeat(world.cells[[number]], len(others), axis=0)
            cells[:, place] = others
            verdict = world.judge(task, np.full(len(others), prompt), cells)
            assert not verdict.right.any() and not verdict.kept.any()
            assert (verdict.changed.sum(axis=1) == 1).all() and verdict.changed[:, place].all()


def test_cells_that_may_change_are_told_from_those_that_had_to_stay():
    world = editing(1)
    task, given, _, draws = prompts_of(world, 300)
    stays, names = world.stays(task, given), np.array(world.prompt_kinds)[world.kinds_of(task, given)]
    number_of_cells = {"recolour": 15, "enlarge": 15, "remove": 15, "move": 14, "elsewhere": 0, "add": 1}
    assert {name: set(stays[names == name].sum(axis=1)) for name in number_of_cells} == {
        name: {count} for name, count in number_of_cells.items()
    }


def test_unreadable_and_crowded_pictures_are_wrong():
    world = editing(2)
    task, given, target, _ = prompts_of(world, 20)
    unreadable, crowded = world.cells[target].copy(), world.cells[target].copy()
    unreadable[:, 3] = tiles.UNREADABLE
    crowded[:] = 7
    assert not world.judge(task, given, unreadable).right.any() and not world.judge(task, given, crowded).right.any()


def test_an_example_tells_its_edit_and_nothing_else_does():
    world = examples()
    for split in (HELD_OUT, COMBINATIONS):
        task, given, target, draws = prompts_of(world, 200, split)
        edit = world.columns["edit"][draws.rows]
        assert (world.kinds_of(task, given) == edit).all()
        assert (world.attribute_values(WITHOUT, "edit", target, draws.values("picture")) == edit).all()
    assert world.floor(BY_EXAMPLE) == 0
    odds = world.attribute_odds(WITHOUT, "edit", draws.values("picture"))
    assert odds[odds > 0].max() <= 1 / (len(EDITS) - 1) + 1e-9  # a shape lacks the edit that is held out for it


def test_held_out_edits_are_shown_by_examples_of_other_shapes():
    world = examples()
    rows = world.draw(0, 3000).rows
    assert not world.held_out[rows].any()
    assert set(world.columns["edit"][rows]) == set(range(len(EDITS)))


def test_a_ball_moves_as_far_as_its_rate_says():
    world = rates()
    draws = world.draw(0, 600)
    clips = draws.values("clip")
    _, places = world.paths_of(clips)
    y, x = np.divmod(places, LATTICE)
    far = np.abs(np.diff(y, axis=1)) + np.abs(np.diff(x, axis=1))
    rate = world.rates_of("clip", clips)
    assert {one: set(far[rate == one].ravel()) for one in world.rates} == {2: {0, 2}, 4: {1}, 8: {0, 1}}
    assert (far[rate == 8].sum(axis=1) <= 2).all() and (far[rate == 8].max(axis=1) == 1).all()
    assert (world.rates_of("caption", draws.values("caption")) == rate).all()
    assert all(words.endswith(f" at {one} fps") for words, one in zip(draws.captions, rate, strict=True))
    assert (world.rates_of("beginning", draws.values("beginning")) == rate).all()


def test_frames_are_read_back_at_the_rate_that_their_header_named():
    world = rates()
    rows = world.draw(0, 40).rows
    clips = world.variables["clip"][rows]
    pixels = world.render(rows)
    assert pixels.shape[1] == NUM_STEPS
    found = world.at_rate(world.grade(pixels), world.rates_of("clip", clips))
    np.testing.assert_array_equal(found, clips)
    assert (world.at_rate(np.array([-1, -1]), np.array([2, 8])) == -1).all()


def test_middle_rate_is_the_world_of_a_rolling_ball():
    assert rates().floors("text-to-video")["4 fps"] == pytest.approx(moving().floor("text-to-video"))
    assert rates().floors("continuation")["4 fps"] == pytest.approx(moving().floor("continuation"))


def test_worlds_of_requests_differ_in_their_fingerprints():
    assert len({make().fingerprint() for make in MAKERS.values()}) == len(MAKERS)
    assert all(isinstance(make(), RequestWorld) for make in MAKERS.values())


@pytest.mark.parametrize("make", [lambda: editing(3), lambda: fills(0)])
def test_other_numbers_of_objects_are_refused(make):
    with pytest.raises(ValueError, match="1 or 2 objects"):
        make()
