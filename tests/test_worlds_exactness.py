"""Worlds: exact probabilities, pure draws, pictures that can be read back."""

import time

import numpy as np
import pytest

from emu.worlds import COMBINATIONS, HELD_OUT, TRAIN, Rule, Task, World, moving, shapes
from emu.worlds import tiles as tile
from emu.worlds.moving import is_path, roll

WORLDS = {"one": lambda: shapes(1), "two": lambda: shapes(2), "moving": lambda: moving()}
QUESTIONS = [(name, task) for name, make in WORLDS.items() for task in make().tasks]


@pytest.fixture(params=list(WORLDS))
def world(request):
    return WORLDS[request.param]()


def picture_of(world):
    return "clip" if "clip" in world.variables else "picture"


@pytest.mark.parametrize(("name", "task"), QUESTIONS)
def test_floors_agree_with_monte_carlo(name, task):
    world = WORLDS[name]()
    bits = world.exact_bits(task, world.draw(0, 20_000, HELD_OUT))
    assert np.isfinite(bits).all()
    assert abs(bits.mean() - world.floor(task)) < 5 * bits.std() / len(bits) ** 0.5 + 1e-9


def test_probabilities_given_a_prompt_sum_to_one(world):
    for task in world.tasks.values():
        table = world.table(task.target, task.given)
        for given in np.random.default_rng(0).choice(table.given_values, 20).tolist():
            targets, odds = table.outcomes(given)
            assert odds.sum() == pytest.approx(1, abs=1e-12)
            log2 = world.log2_probability(task.name, targets, np.full(len(targets), given))
            np.testing.assert_allclose(2**log2, odds, atol=1e-12)


def test_the_plain_caption_leaves_place_and_size_free():
    world = shapes(1)
    draws = world.draw(3, 200, rules=["plain"])
    place, size = (world.attribute_odds("text-to-image", name, draws.values("caption")) for name in ("place", "size"))
    np.testing.assert_allclose(place, 1 / 16)
    np.testing.assert_allclose(size, np.broadcast_to([0.7, 0.3], size.shape))
    expected = 4 - 0.7 * np.log2(0.7) - 0.3 * np.log2(0.3)
    assert world.exact_bits("text-to-image", draws).min() == pytest.approx(4 - np.log2(0.7))
    assert world.table("picture", "caption").entropy() < expected + 2


def test_a_relation_admits_only_scenes_where_it_holds():
    world = shapes(2)
    draws = world.draw(0, 300, rules=["relation"])
    words = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
    for row, caption in zip(draws.rows, draws.captions, strict=True):
        word = next(word for word in words if f" {word} " in caption)
        first, second = caption.split(f" {word} ")
        names = [
            f"a {tile.COLOURS[world.columns['colour' + i][row]]} {tile.SHAPES[world.columns['shape' + i][row]]}"
            for i in ("", "2")
        ]
        assert {first, second} == set(names)
        places = dict(zip(names, world.places[row], strict=True))
        axis, sign = words[word]
        assert np.sign(np.divmod(places[first], 4)[axis] - np.divmod(places[second], 4)[axis]) == sign


def test_a_negation_never_names_a_colour_of_the_scene():
    for world, columns in ((shapes(1), ("colour",)), (shapes(2), ("colour", "colour2"))):
        draws = world.draw(0, 300, rules=["negated"])
        for row, caption in zip(draws.rows, draws.captions, strict=True):
            assert caption.split()[-1] not in {tile.COLOURS[world.columns[name][row]] for name in columns}


def test_captions_and_numbers_are_one_to_one(world):
    texts = [world.captions.text(number) for number in range(len(world.captions))]
    assert len(set(texts)) == len(texts)


def test_draws_are_a_pure_function_of_seed_and_number(world):
    long = world.draw(7, 50)
    part = world.draw(7, 10, start=20)
    assert (long.rows[20:30] == part.rows).all() and (long.options[20:30] == part.options).all()
    assert (world.draw(8, 50).rows != long.rows).any()
    assert (world.draw(7, 50, HELD_OUT).rows != long.rows).any()


def test_draws_follow_the_distribution():
    world = shapes(1)
    counts = np.bincount(world.draw(0, 100_000).rows, minlength=768)
    expected = 100_000 * world.probability
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 767) < 5 * (2 * 767) ** 0.5


def test_held_out_combinations_are_never_drawn_for_training():
    for world in (shapes(2), moving()):
        assert not world.held_out[world.draw(0, 5000, TRAIN).rows].any()
        assert world.held_out[world.draw(0, 1000, COMBINATIONS).rows].all()
        assert np.isfinite(world.exact_bits(next(iter(world.tasks)), world.draw(0, 500, COMBINATIONS))).all()


def test_a_world_without_combinations_says_so():
    with pytest.raises(ValueError, match="has no held-out combinations"):
        shapes(1).draw(0, 5, COMBINATIONS)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_graders_read_true_renders(world, size):
    draws = world.draw(1, 200 if size < 128 else 50)
    np.testing.assert_array_equal(world.grade(world.render(draws.rows, size)), draws.values(picture_of(world)))


def test_every_one_object_scene_is_read_and_drawn_apart():
    world = shapes(1)
    pictures = world.render(np.arange(768), 32)
    assert len(np.unique(pictures.reshape(768, -1), axis=0)) == 768
    np.testing.assert_array_equal(world.grade(pictures), np.arange(768))


def test_graders_read_slightly_wrong_pictures(world):
    draws = world.draw(1, 200)
    noise = np.random.default_rng(0).normal(
        0, 12, (200, 1, 32, 32, 3) if picture_of(world) == "clip" else (200, 32, 32, 3)
    )
    pictures = (world.render(draws.rows, 32) + noise).clip(0, 255).astype(np.uint8)
    assert (world.grade(pictures) == draws.values(picture_of(world))).mean() >= 0.995


CORRUPTIONS = {
    "shifted by half a cell": lambda pixels: np.roll(pixels, 4, axis=-2),
    "inverted": lambda pixels: 255 - pixels,
    "without colour": lambda pixels: np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape).astype(np.uint8),
    "channels turned": lambda pixels: np.roll(pixels, 1, axis=-1),
    "mirrored": lambda pixels: pixels[..., ::-1, :],
    "empty": lambda pixels: np.full_like(pixels, 16),
    "noise": lambda pixels: np.random.default_rng(0).integers(0, 256, pixels.shape).astype(np.uint8),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_graders_fail_on_corrupted_pictures(world, corruption):
    draws = world.draw(1, 300)
    broken = np.ascontiguousarray(CORRUPTIONS[corruption](world.render(draws.rows, 32)))
    wrong = world.grade(broken) != draws.values(picture_of(world))
    assert wrong.mean() >= 0.99


def test_a_clip_with_one_broken_frame_is_no_clip():
    world = moving(frames_per_step=2)
    clips = world.render(world.draw(0, 20).rows)
    clips[:, 3] = clips[:, 0][..., ::-1]
    assert (world.grade(clips) == -1).all()


def test_pictures_of_another_size_are_refused(world):
    shape = (2, 4, 40, 40, 3) if picture_of(world) == "clip" else (2, 40, 40, 3)
    with pytest.raises(ValueError, match="multiple of 32"):
        world.grade(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="multiple of 32"):
        world.render(np.array([0]), 33)
    with pytest.raises(ValueError, match="expected"):
        world.grade(np.zeros((2, 5, 32, 32), np.uint8))


def test_a_ball_bounces_and_never_stands_still():
    places = roll(np.array([0]), np.array([0]), np.array([[0, 0]]))  # up from the top left corner: bounces down
    assert places.tolist() == [[0, 4, 8, 12]]
    world = moving()
    assert is_path(world.places).all()
    assert not is_path(np.array([[0, 0, 1, 2]])).any()


def test_hidden_headings_are_summed_out():
    world = moving()
    brute: dict[tuple[int, int], float] = {}
    for row, odds in enumerate(world.distribution(TRAIN)):
        key = (int(world.variables["beginning"][row]), int(world.variables["clip"][row]))
        brute[key] = brute.get(key, 0) + odds
    begun: dict[int, float] = {}
    for (beginning, _), odds in brute.items():
        begun[beginning] = begun.get(beginning, 0) + odds
    assert len(brute) < (world.distribution(TRAIN) > 0).sum()
    entropy = -sum(odds * np.log2(odds / begun[beginning]) for (beginning, _), odds in brute.items() if odds)
    assert world.floor("continuation") == pytest.approx(entropy, abs=1e-9)


def test_boxes_go_to_numbers_and_back():
    for world in (shapes(1), shapes(2)):
        for row in world.draw(0, 50).rows:
            number = world.read_boxes(world.boxes[row])
            assert number == world.variables["boxes"][row]
            np.testing.assert_array_equal(world.boxes_of(number), world.boxes[row])
        assert world.read_boxes(np.array([[1, 2, 3, 9]] * world.num_objects)) == -1
        assert world.read_boxes(np.zeros((3, 4), int)) == -1


def test_a_world_of_ones_own_must_sum_to_one():
    coin = {"side": np.array([0, 1])}
    words = {"side": ("heads", "tails")}
    rules = [Rule("say", 1.0, "{side}")]
    tasks = [Task("look", "caption", "coin")]

    def build(odds=(0.5, 0.5), rules=rules, tasks=tasks):
        return World("coin", coin, np.array(odds), rules, words, {"coin": np.array([0, 1])}, tasks)

    assert build().floor("look") == pytest.approx(0)
    with pytest.raises(ValueError, match="sum to 0.9"):
        build((0.5, 0.4))
    with pytest.raises(ValueError, match="weights of the caption rules sum to 0.8"):
        build(rules=[Rule("say", 0.8, "{side}")])
    with pytest.raises(ValueError, match="unknown|names the variable"):
        build(tasks=[Task("look", "caption", "edge")])
    with pytest.raises(ValueError, match="entries in these"):
        World("coin", coin, np.array([0.5, 0.5]), rules, words, {"coin": np.array([0, 1, 1])}, tasks)


def test_rendering_is_fast():
    world = shapes(2)
    rows = world.draw(0, 2000).rows
    start = time.process_time()
    world.render(rows, 32)
    assert time.process_time() - start < 1
