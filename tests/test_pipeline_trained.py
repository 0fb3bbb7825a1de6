"""What a model was trained for: names of tasks, and what lies outside."""

import pytest

from emu.trained import Trained, task_name, tasks_of


@pytest.mark.parametrize(
    ("kinds", "tasks"),
    [
        (["text", "image"], ("text_to_image",)),
        (["image", "text", "text"], ("image_to_text",)),
        (["text", "video"], ("text_to_video", "video_continuation")),
        (["video", "text"], ("video_to_text",)),
        (["image", "video"], ("image_to_video", "video_continuation")),
        (["image", "text", "image"], ("image_to_text", "image_and_text_to_image")),
        (["text", "image", "text", "image"], ("text_to_image", "text_and_image_to_text", "text_and_image_to_image")),
        (["image", "image", "image"], ("image_to_image",)),
        (["image"], ("unconditional_image",)),
        (["video"], ("unconditional_video", "video_continuation")),
        (["text"], ("text_continuation",)),
        (["image", "boxes"], ("image_to_boxes",)),
        ([], ()),
    ],
)
def test_documents_teach_what_stands_after_something_else(kinds, tasks):
    assert tasks_of(kinds) == tasks


def test_text_after_text_goes_on_with_it():
    assert task_name(["image", "text"], "text") == task_name(["image"], "text") == "image_to_text"
    assert task_name(["text"], "text") == task_name([], "text") == "text_continuation"


def test_what_is_known_of_a_model_survives_json():
    trained = Trained(("text_to_image",), ((32, 48), (64, 64)), (8,), (7.5, 8), 66)
    assert Trained.from_dict(trained.to_dict()) == trained
    assert Trained.from_dict(Trained().to_dict()) == Trained()


WHOLE = {"tasks": ["text_to_image"], "sizes": [[32, 32]], "frames": [8], "rates": [8], "context": 66}


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": "text_to_image"},
        {"tasks": [3]},
        {"sizes": [32, 32]},
        {"sizes": [[32]]},
        {"sizes": [[32, 0]]},
        {"sizes": [[32, 32.5]]},
        {"frames": [0]},
        {"rates": [float("nan")]},
        {"rates": ["8"]},
        {"context": True},
        {"context": -1},
        {"other": 1},
    ],
)
def test_a_table_that_is_not_of_this_form_is_refused(change):
    with pytest.raises((TypeError, ValueError), match="trained"):
        Trained.from_dict({**WHOLE, **change})


def test_what_lies_outside_is_named_with_what_lies_inside():
    trained = Trained.from_dict(WHOLE)
    assert trained.problems(size=(32, 32), frames=8, rate=8.0, tokens=66) == []
    found = ", ".join(trained.problems(size=(64, 32), frames=48, rate=2.5, tokens=67))
    assert all(word in found for word in ("64x32", "32x32", "48 frames", "2.5 frames a second", "67 tokens", "66"))
    with pytest.raises(ValueError, match=r"not trained for video_to_text; .*text_to_image"):
        trained.check_task("video_to_text")
    trained.check_task("unconditional_image", "text_to_image")


def test_nothing_known_means_nothing_said():
    assert Trained().problems(size=(64, 32), frames=48, rate=2.5, tokens=10**6) == []
    Trained().check_task("text_to_image")
