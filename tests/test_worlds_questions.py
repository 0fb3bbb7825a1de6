"""Questions about scenes: their answers, read off the pixels by other means, and how they are drawn."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from emu.evaluation.statistics import chi_square
from emu.worlds import COMBINATIONS, HELD_OUT, TRAIN, fills, moving, shapes
from emu.worlds import tiles as pixels_of
from emu.worlds.moving import roll
from emu.worlds.questions import WorldQuestions
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES, SIZES

WORLDS = {"one": shapes(1), "two": shapes(2), "moving": moving(4), "long": moving(6)}
QUESTIONS = {name: WorldQuestions(world) for name, world in WORLDS.items()}


def objects_in(picture):
    """(shape, colour, size, y, x) of the objects in a lattice of tiles."""
    found = []
    for place in np.flatnonzero(picture):
        shape, colour, size = (int(part) for part in pixels_of.attributes_of(picture[place]))
        found.append((SHAPES[shape], COLOURS[colour], SIZES[size], *divmod(int(place), LATTICE)))
    return found


def corner(y, x):
    return f"{'bottom' if y > 1 else 'top'} {'right' if x > 1 else 'left'}"


def answer_about_a_picture(text, objects):
    """The answer in words, from the objects and the words of the question alone."""
    if half := re.search(r"(left|right|top|bottom) half", text):
        inside = {"left": lambda y, x: x < 2, "right": lambda y, x: x > 1, "top": lambda y, x: y < 2}
        counted = inside.get(half[1], lambda y, x: y > 1)
        return ("none", "one", "two")[sum(counted(*one[3:]) for one in objects)]
    words = re.findall(r"\b(?:" + "|".join((*SHAPES, *COLOURS)) + r")\b", text)
    named = [one for word in words for one in objects if word in one[:2]] or objects
    if "left or right" in text or "above or below" in text:
        first, second = named if "which side" not in text else named[::-1]
        axis, names = (4, ("left", "right")) if "left or right" in text else (3, ("above", "below"))
        return names[first[axis] > second[axis]]
    (it,) = named
    if re.search("colour (is|does|of)", text):
        return it[1]
    if re.search("shape", text):
        return it[0]
    if re.search("size|large", text):
        return it[2]
    return corner(*it[3:])


def answer_about_a_clip(text, frames):
    """The answer in words, from the objects of every frame."""
    path = [objects[0] for objects in frames]
    moves = [(b[3] - a[3], b[4] - a[4]) for a, b in zip(path, path[1:], strict=False)]
    ways = {(-1, 0): "up", (0, -1): "left", (1, 0): "down", (0, 1): "right"}
    if "colour" in text:
        return path[0][1]
    if "way" in text or "direction" in text:
        return ways[moves[0 if "first" in text else -1]]
    if "start" in text or "end" in text:
        return corner(*path[0 if "start" in text else -1][3:])
    bounced = 0
    for place, before, after in zip(path[1:], moves, moves[1:], strict=False):
        # Of what the ball may do next, straight on and a left turn, one that stays inside needs no wall.
        free = [before, (-before[1], before[0])]
        bounced += after not in free
        assert 0 <= place[3] + after[0] < 4 and 0 <= place[4] + after[1] < 4
    return ("never", "once", "twice", "three times", "four times")[bounced]


@pytest.mark.parametrize("name", ["one", "two"])
def test_answers_are_what_the_pixels_show(name):
    asked = QUESTIONS[name].draw(3, 1500, HELD_OUT)
    seen = pixels_of.read(WORLDS[name].render(asked.shown[1]))
    for text, answer, picture in zip(asked.texts, asked.answers, seen, strict=True):
        assert answer_about_a_picture(text, objects_in(picture)) == answer, text


@pytest.mark.parametrize("name", ["moving", "long"])
def test_answers_about_clips_are_what_the_frames_show(name):
    asked = QUESTIONS[name].draw(3, 400, HELD_OUT)
    clips = WORLDS[name].render_clips(asked.shown[1])
    seen = pixels_of.read(clips.reshape(-1, *clips.shape[2:])).reshape(len(clips), -1, LATTICE**2)
    for text, answer, frames in zip(asked.texts, asked.answers, seen, strict=True):
        assert answer_about_a_clip(text, [objects_in(frame) for frame in frames]) == answer, text


def test_bounces_are_the_reversals_of_the_walk_after_its_first_move():
    world = WORLDS["moving"]
    bounces = next(kind for kind in QUESTIONS["moving"].kinds if kind.name == "bounces").table[:, 0]
    turns = np.stack([some.ravel() for some in np.indices((2, 2))], axis=1)
    for start in range(LATTICE**2):
        for direction in range(4):
            walks = roll(np.full(4, start), np.full(4, direction), turns)
            for walk, turned in zip(walks, turns, strict=True):
                heading = [(walk[1] - walk[0]), (walk[2] - walk[1])]
                left = {-4: -1, -1: 4, 4: 1, 1: -4}
                meant = [left[step] if turn else step for step, turn in zip(heading, turned, strict=True)]
                expected = sum(int(walk[i + 2] - walk[i + 1] != step) for i, step in enumerate(meant))
                (rows,) = np.nonzero((world.places == walk).all(axis=1))
                assert set(bounces[rows]) == {expected}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_answer_is_as_likely_once_it_is_known_what_is_asked(name):
    questions = QUESTIONS[name]
    asked = questions.draw(1, 24_000)
    counted = defaultdict(Counter)
    for kind, text, answer in zip(asked.kinds.tolist(), asked.texts, asked.answers, strict=True):
        counted[kind, text][answer] += 1
    tests = []
    for answers in counted.values():
        counts = np.array(list(answers.values()))
        if counts.sum() >= 60:
            tests.append(chi_square(counts, np.full(len(counts), 1 / len(counts))).p_value)
    assert len(tests) > 10 and min(tests) > 1e-3 / len(tests)
    expected = np.mean(1 / asked.choices)
    best = sum(max(answers.values()) for answers in counted.values()) / len(asked)
    assert best < expected + 0.06  # the best guess that knows the text and not the picture


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_depends_on_its_seed_split_and_number_alone(name):
    questions = QUESTIONS[name]
    whole, part = questions.draw(5, 40), questions.draw(5, 10, start=25)
    assert whole.texts[25:35] == part.texts and whole.answers[25:35] == part.answers
    assert (whole.rows[25:35] == part.rows).all()
    assert questions.draw(6, 40).texts != whole.texts and questions.draw(5, 40, HELD_OUT).texts != whole.texts


def test_every_kind_is_asked_in_several_wordings():
    for questions in QUESTIONS.values():
        assert all(len(set(kind.wordings)) >= 2 for kind in questions.kinds)
        asked = questions.draw(0, 2000)
        assert {questions.names[kind] for kind in asked.kinds} == set(questions.names)


def test_held_out_pairs_are_asked_about_in_their_own_split_alone():
    for name in ("two", "moving"):
        held_out = WORLDS[name].held_out
        assert held_out[QUESTIONS[name].draw(0, 500, COMBINATIONS).rows].all()
        assert not held_out[QUESTIONS[name].draw(0, 500, TRAIN).rows].any()
    with pytest.raises(ValueError, match="no held-out combinations"):
        QUESTIONS["one"].draw(0, 5, COMBINATIONS)


def test_lines_are_conversations_of_one_question_and_one_answer():
    asked = QUESTIONS["one"].draw(0, 3)
    lines = asked.lines([{"image": f"{i}.png"} for i in range(3)])
    user, assistant = lines[1]["messages"]
    assert user == {"role": "user", "content": [{"image": "1.png"}, asked.texts[1]]}
    assert assistant == {"role": "assistant", "content": asked.answers[1]}
    with pytest.raises(ValueError, match="2 items for 3 questions"):
        asked.lines([{"image": "0.png"}] * 2)


def test_worlds_without_questions_and_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no questions are known about the world 'fill"):
        WorldQuestions(fills(1))
    with pytest.raises(ValueError, match="expected at least one question"):
        QUESTIONS["one"].draw(0, 0)
