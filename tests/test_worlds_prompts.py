"""Captions of worlds as prompts, and the reward that reads their answers off exactly."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from emu.rewards import Candidate
from emu.worlds import shapes, worlds_of
from emu.worlds.world_prompts import WorldPromptData, WorldReward


def drawn(world, rows, captions):
    pictures = [Image.fromarray(picture) for picture in world.render(rows)]
    texts = [world.captions.text(number) for number in captions]
    return [Candidate((text,), one, torch.zeros(4, 4), "image") for text, one in zip(texts, pictures, strict=True)]


def test_a_picture_is_worth_one_where_its_caption_allows_it():
    one, two = shapes(1), shapes(2)
    reward = WorldReward(("one", "two"))
    first, second = one.draw(3, 20), two.draw(3, 20)
    candidates = drawn(one, first.rows, first.values("caption")) + drawn(two, second.rows, second.values("caption"))
    assert reward(candidates) == [1.0] * 40
    other = drawn(two, second.rows[1:], second.values("caption")[:-1]) + drawn(
        one, first.rows[:1], first.values("caption")[:1]
    )
    assert sum(reward(other)) < 10 and reward(other)[-1] == 1.0
    torn = Candidate(candidates[0].document, Image.new("RGB", (32, 32), "pink"), torch.zeros(4, 4), "image")
    assert reward([torn]) == [0.0]


def test_prompts_of_other_worlds_are_refused():
    candidate = Candidate(("a purple cow",), Image.new("RGB", (32, 32)), torch.zeros(4, 4), "image")
    with pytest.raises(ValueError, match=r"'a purple cow' is no caption of the worlds one, two"):
        WorldReward(("one", "two"))([candidate])
    with pytest.raises(ValueError, match="expected worlds such as one"):
        WorldReward(("three",))


def test_worlds_are_found_by_names_of_any_kind_of_sequence():
    names = ["two", "edit-one", "rates"]
    assert set(worlds_of(iter(names))) == set(worlds_of(names)) == {"one", "two", "moving", "edit-one", "rates"}


@pytest.mark.parametrize("name", ["one", "three/text-to-image", "one/image-to-text", "one/text-to-image/twice"])
def test_prompts_of_what_no_world_has_are_told_before_any_is_made(name):
    found = WorldPromptData("nowhere", {name: 2, "rates/text-to-video": 1}).source_problems()
    assert (
        found[0].startswith(f"documents_per_step names {name!r}; expected a world and a task")
        and "rates" not in found[0]
    )
