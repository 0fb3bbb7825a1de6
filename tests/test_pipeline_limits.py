"""Requests outside of what a model was trained for are told before work starts: once, in words, at the caller's line."""

import copy
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from emu import Emu, Video
from emu.pipeline import GenerationDefaults
from emu.trained import Trained

TASKS = ("text_to_image", "image_to_text", "text_to_video", "video_continuation")
TRAINED = Trained(TASKS, ((8, 8),), (8,), (4,), 60)


@pytest.fixture
def known(tiny_emu):
    return Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=TRAINED)


def picture(height=8, width=8):
    return Image.fromarray(np.full((height, width, 3), 100, np.uint8))


def told(call):
    """What a call warns of, and its result."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call()
    assert all(warning.filename == __file__ for warning in found)
    return [str(warning.message) for warning in found], result


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda emu, **o: emu.generate_images(["a ball"] * 3, batch_size=1, size=(16, 8), **o), ["size 16x8", "8x8"]),
        (
            lambda emu, **o: emu.generate_videos("a ball", frames=4, fps=3, **o),
            ["4 frames", "on 8", "3 frames a second"],
        ),
        (lambda emu, **o: emu.generate_images("a ball " * 20, **o), ["tokens (trained on up to 60)"]),
        (
            lambda emu, **o: emu.generate_videos("a ball", frames=300, **o),
            ["300 frames", "the model has 512 positions"],
        ),
        (lambda emu, **o: emu.generate_text([[picture(), "a ball " * 20]], max_new_tokens=2, **o), ["up to 60"]),
        (
            lambda emu, **o: list(emu.generate("a ball", size=(16, 8), frames=4, max_new_tokens=2, **o)),
            ["size 16x8", "4 frames"],
        ),
    ],
)
def test_what_lies_outside_gives_one_warning_and_strict_refuses_it(known, call, words):
    messages, result = told(lambda: call(known))
    assert len(messages) == 1 and result
    assert all(word in messages[0] for word in words)
    with pytest.raises(ValueError, match="not trained for this"):
        call(known, strict=True)


def test_what_lies_inside_and_what_nobody_knows_gives_none(known, tiny_emu):
    for emu, size in ((known, (8, 8)), (tiny_emu, (16, 24))):
        assert told(lambda emu=emu, size=size: emu.generate_images("a ball", size=size, strict=True))[0] == []
        assert told(lambda emu=emu: emu.generate_videos("a ball", first_frames=picture()))[0] == []
        assert told(lambda emu=emu: emu.generate_text([[picture(), "a"]], max_new_tokens=2))[0] == []


@pytest.mark.parametrize(
    ("call", "task"),
    [
        (lambda emu: emu.generate_text([[Video([picture()] * 8, 4), "what?"]]), "video_to_text"),
        (lambda emu: emu.generate_text([["a ball"]]), "text_continuation"),
        (lambda emu: emu.generate_text([[picture(), "a"], ["b", picture()]]), "text_and_image_to_text"),
        (lambda emu: emu.generate(["a", picture()]), "text_and_image_to_text"),
        (lambda emu: still(emu).generate_videos("a ball"), "text_to_video"),
        (lambda emu: still(emu).generate_videos("", first_frames=picture()), "image_to_video"),
        (lambda emu: still(emu).generate_videos("", first_frames=[picture()] * 2), "video_continuation"),
        (lambda emu: still(emu, "image_to_text").generate_images("a ball"), "text_to_image"),
        (lambda emu: still(emu, "image_to_text").generate_images(""), "unconditional_image"),
    ],
)
def test_a_task_that_was_not_trained_is_refused_by_name(known, call, task):
    with pytest.raises(ValueError, match=f"not trained for {task}; "):
        call(known)


def still(emu, *tasks):
    return Emu(emu.model, emu.tokenizer, emu.defaults, trained=Trained(tasks or ("text_to_image",)))


def test_a_single_picture_may_begin_a_clip_where_clips_are_continued(known):
    assert known.generate_videos("a ball", first_frames=picture())


def test_positions_end_texts_and_refuse_prompts_that_fill_them(tiny_emu):
    model = copy.deepcopy(tiny_emu.model)
    model.config.max_position_embeddings = 40
    emu = Emu(model, tiny_emu.tokenizer, tiny_emu.defaults)
    lengths = [len(emu.tokenizer.question(["a"] * count)) for count in (1, 20)]
    messages, texts = told(lambda: emu.generate_text([["a"], ["a"] * 20], max_new_tokens=200, temperature=1.0))
    assert messages == [] and len(texts) == 2
    engine = emu._engine(None)
    written = engine.generate_text([emu.tokenizer.question(["a"] * count) for count in (1, 20)], max_new_tokens=200)
    assert all(len(row) + length <= 40 for row, length in zip(written, lengths, strict=True))
    with pytest.raises(ValueError, match=r"a prompt has \d+ tokens and the model 40 positions"):
        emu.generate_text([["a"], ["a"] * 60])
    with pytest.raises(ValueError, match="40 positions"):
        emu.generate(["a"] * 60)


def test_documents_in_any_order_stay_within_the_positions(tiny_emu):
    model, controls = copy.deepcopy(tiny_emu.model), tiny_emu.tokenizer.vocabulary.controls
    model.lm_head.weight.data[controls["boi"]] *= 20  # so that half of the time a block begins
    model.config.max_position_embeddings = 60
    emu = Emu(model, tiny_emu.tokenizer, tiny_emu.defaults)
    for seed in range(4):
        document = ["a ball", *emu.generate("a ball", max_new_tokens=200, max_blocks=50, seed=seed)]
        assert len(emu.tokenizer.encode(document)) <= 60 + 12  # the header of a block that did not fit is not in it


def test_a_model_of_a_single_size_needs_none_and_others_tell_theirs(tiny_emu):
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, trained=Trained(sizes=((8, 12),), frames=(4,), rates=(2,)))
    assert (emu.defaults.size, emu.defaults.frames, emu.defaults.fps) == ((8, 12), 4, 2)
    assert emu.generate_images("a ball")[0].image.size == (12, 8)
    assert len(emu.generate_videos("a ball")[0].frames) == 4
    several = Emu(tiny_emu.model, tiny_emu.tokenizer, trained=Trained(sizes=((8, 12), (16, 16))))
    with pytest.raises(ValueError, match=r"no size.*\(8, 12\), \(16, 16\)"):
        several.generate_images("a ball")


def test_what_a_model_was_trained_for_is_saved_with_it(known, tmp_path):
    known.save_pretrained(tmp_path / "model")
    assert Emu.from_pretrained(tmp_path / "model").trained == TRAINED
    settings = json.loads((tmp_path / "model" / "emu.json").read_text())
    assert settings["trained"]["tasks"] == list(TASKS)
    settings["generation"] = {}  # as an export of training on shards writes it
    (tmp_path / "model" / "emu.json").write_text(json.dumps(settings))
    assert Emu.from_pretrained(tmp_path / "model").defaults == GenerationDefaults(size=(8, 8), frames=8, fps=4)


def test_an_emu_is_shown_in_one_line_with_what_it_does(known):
    assert repr(known).startswith("Emu(") and "\n" not in repr(known)
    assert "text_to_image" in repr(known) and len(repr(known)) < 200
