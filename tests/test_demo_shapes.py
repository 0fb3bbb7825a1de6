"""The bundled model `shapes`: edits, boxes, hidden rectangles and clips at three rates, and how it came among the bundled ones."""

import json

import numpy as np
import pytest

from emu import Emu
from emu.checkpoints.bundled import BUNDLED, is_bundled
from emu.demo.shapes_bundle import MOST_BYTES, NAME
from emu.modalities.boxes import Boxes
from emu.serving.model_card import EXAMPLES, tasks_of_model
from emu.worlds import ShapesWorld, worlds_of

pytestmark = pytest.mark.skipif(not is_bundled(NAME), reason="the model `shapes` is not in this checkout")

RIGHT = {
    "edit-one/edit": 0.95,
    "edit-two/edit": 0.85,
    "examples/by-example": 0.9,
    "fill-one/fill": 0.95,
    "fill-two/fill": 0.85,
}
"""Least shares of right answers; docs/results.md has all figures."""


@pytest.fixture(scope="module")
def shapes():
    return Emu.from_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def one():
    world = worlds_of(["one"], False)["one"]
    assert isinstance(world, ShapesWorld)
    return world


def seen(world, pictures):
    """Shape, colour, size and cell of the only object of each picture, by the world's own reading of pixels."""
    rows = world.grade(np.stack([np.asarray(picture) for picture in pictures]))
    assert (rows >= 0).all()
    return [{name: int(column[row]) for name, column in world.columns.items()} for row in rows]


def test_it_carries_its_figures_and_they_meet_the_bars():
    figures = json.loads((BUNDLED / NAME / "metrics.json").read_text())
    assert all(figures[f"right/{task}"] >= share for task, share in RIGHT.items())
    assert all(figures[f"kept/{task}"] == 1 for task in ("fill-one/fill", "fill-two/fill"))
    assert all(figures[f"right/{task}/overwritten"] <= 0.6 for task in ("fill-one/fill", "fill-two/fill"))


def test_it_takes_less_than_five_megabytes():
    assert sum(file.stat().st_size for file in (BUNDLED / NAME).rglob("*") if file.is_file()) <= MOST_BYTES


def test_its_files_are_those_that_were_written_and_its_worlds_are_the_librarys():
    Emu.from_pretrained(NAME, device="cpu", verify=True)
    known = json.loads((BUNDLED / NAME / "worlds.json").read_text())["worlds"]
    assert {"edit-one", "edit-two", "examples", "fill-one", "fill-two", "rates"} <= set(known)
    few = ["one", "edit-one", "fill-one"]  # the others take longer to make; all are compared when the model is measured
    assert {name: world.fingerprint() for name, world in worlds_of(few, False).items() if name in few} == {
        name: known[name] for name in few
    }


def test_it_edits_by_words_and_by_example(shapes, one):
    drawn = [
        result.image for result in shapes.generate_images(["a red circle", "a yellow square"], images_per_prompt=8)
    ]
    edited = [result.image for result in shapes.edit_images(drawn, "make it blue")]
    before, after = seen(one, drawn), seen(one, edited)
    right = [{**old, "colour": 2} == new for old, new in zip(before, after, strict=True)]
    assert sum(right) >= 15
    shown = [[drawn[0], edited[0], other] for other in drawn[8:]]
    by_example = seen(one, [result.image for result in shapes.generate_images(shown)])
    assert sum({**old, "colour": 2} == new for old, new in zip(before[8:], by_example, strict=True)) >= 7


def test_it_draws_into_boxes(shapes, one):
    boxes = Boxes([[8, 16, 15, 23]])  # bins of 32x32 pictures are pixels
    cells = {
        found["place"] for found in seen(one, [r.image for r in shapes.generate_images([[boxes]], images_per_prompt=8)])
    }
    assert cells == {1 * 4 + 2}


def test_it_fills_in_what_the_caption_asks_for_and_leaves_the_rest(shapes):
    picture = shapes.generate_images([[Boxes([[24, 0, 31, 7]])]])[0].image  # something in the last row
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    (result,) = shapes.edit_images(picture, "two objects", mask=mask)
    changed = (np.asarray(result.image) != np.asarray(picture)).any(axis=2)
    assert changed.any() and not changed[16:].any()


def test_its_clips_move_as_far_as_their_rate_says(shapes):
    """At 2 pictures a second two cells from one to the next, less where the ball turns back; at 8 one in every two pictures."""
    moved = {}
    for rate in (2, 8):
        (clip,) = shapes.generate_videos(f"a red ball rolling left at {rate} fps", fps=rate, seed=3)
        balls = [np.argwhere((np.asarray(frame) != np.asarray(frame)[0, 0]).any(axis=2)) for frame in clip.frames]
        centres = [ball.mean(axis=0) for ball in balls if len(ball)]
        assert clip.fps == rate and len(centres) == 4
        moved[rate] = sum(np.abs(b - a).sum() for a, b in zip(centres, centres[1:], strict=False))
    assert moved[2] > moved[8]


def test_a_server_offers_everything_with_it_but_words_about_clips(shapes):
    assert set(tasks_of_model(shapes).values()) == {None} and EXAMPLES[NAME]
