"""Pictures filled in where a mask is white, clips between given frames: what is kept is the input's own, in codes and in pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, Video
from emu.documents import CodeSegment
from emu.media import read_provenance
from emu.trained import Trained


def picture(seed=0, height=8, width=12):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def frames(seed=0, count=4):
    return np.random.default_rng(seed).integers(0, 255, (count, 8, 8, 3), np.uint8)


def masks(count, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.random((8, 12)) < draw.random() * 0.2 for _ in range(count)]


def codes_of(emu, value):
    (segment,) = emu.tokenizer.segments(value)
    return segment.codes


def test_codes_and_pixels_outside_the_mask_are_the_pictures_own(filling_emu):
    pictures, given = [picture(seed) for seed in range(4)], masks(4)
    given[2][:] = False
    made = filling_emu.edit_images(pictures, "a red circle", mask=given, images_per_prompt=2, seed=3)
    assert len(made) == 8
    for number, result in enumerate(made):
        source, mask = pictures[number // 2], given[number // 2]
        cells = torch.from_numpy(mask.reshape(2, 4, 3, 4).any(axis=(1, 3)))
        assert torch.equal(result.codes[~cells], codes_of(filling_emu, source)[~cells])
        image, decoded = np.asarray(result.image), np.asarray(result.decoded)
        assert np.array_equal(image[~mask], np.asarray(source)[~mask]) and np.array_equal(image[mask], decoded[mask])
        plain = filling_emu.tokenizer.decode_segment(CodeSegment("image", result.codes))
        assert np.array_equal(decoded, np.asarray(plain)) and result.prompt == "a red circle"
    assert np.array_equal(np.asarray(made[4].image), np.asarray(pictures[2]))  # an all-False mask
    assert not torch.equal(made[6].codes, made[7].codes)


def test_masks_are_pictures_arrays_or_files_and_one_may_serve_for_all(filling_emu, tmp_path):
    mask = masks(1, 5)[0]
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    grey.save(tmp_path / "mask.png")
    picture(1).save(tmp_path / "picture.png")
    expected = filling_emu.edit_images([picture(0), picture(1)], "a", mask=mask)
    for other in (grey, grey.convert("1"), tmp_path / "mask.png"):
        made = filling_emu.edit_images([picture(0), picture(1)], "a", mask=other)
        assert all(torch.equal(one.codes, two.codes) for one, two in zip(made, expected, strict=True))
    filling_emu.edit_images(picture(0), ["a", "a red circle"], mask=mask)
    unusual = Emu(filling_emu.model, filling_emu.tokenizer)  # without a default size a picture in a file keeps its own
    (made,) = unusual.edit_images(tmp_path / "picture.png", "a", mask=tmp_path / "mask.png", guidance_scale=2.0)
    assert torch.equal(made.codes, expected[1].codes)
    made.save(tmp_path / "made.png")
    assert "hidden" in str(read_provenance(tmp_path / "made.png")["settings"]["document"])


def test_thin_masks_of_large_pictures_in_files_keep_what_they_touch_and_never_vanish_unsaid(filling_emu, tmp_path):
    picture(0, 128, 128).save(tmp_path / "picture.png")  # drawn at 8x8
    mask = np.zeros((128, 128), bool)
    mask[40] = True
    (made,) = filling_emu.edit_images(tmp_path / "picture.png", "a", mask=mask)
    image, decoded = np.asarray(made.image), np.asarray(made.decoded)
    assert np.array_equal(image[2], decoded[2]) and not np.array_equal(image[4:], decoded[4:])
    mask[40, 1:] = False
    with pytest.raises(ValueError, match="1 white pixels of 128x128 .* none is left at the 8x8"):
        filling_emu.edit_images(tmp_path / "picture.png", "a", mask=mask)


def test_filling_and_drawing_share_a_call_and_do_not_depend_on_it(filling_emu):
    codes = codes_of(filling_emu, picture(0))
    hidden = torch.zeros(2, 3, dtype=torch.bool)
    hidden[:, 1] = True
    documents = [
        ["a", CodeSegment("image", codes, hidden=hidden)],
        "a",
        [picture(1), "b", CodeSegment("image", codes, hidden=~hidden)],
    ]
    together = filling_emu.generate_images(documents, size=[(8, 12), (8, 8), (8, 12)], seed=[1, 2, 3])
    for seed, (document, result) in enumerate(zip(documents, together, strict=True), 1):
        (alone,) = filling_emu.generate_images([document], size=(8, 12) if seed != 2 else (8, 8), seed=seed)
        assert torch.equal(alone.codes, result.codes)


@pytest.mark.parametrize("first, last", [(4, 4), (0, 4), (1, 1), (5, 3), (0, 9)])
def test_clips_between_given_frames_keep_their_codes(filling_emu, first, last):
    given = {"first_frames": frames(1, first) if first else None, "last_frames": frames(2, last)}
    (made, again) = filling_emu.generate_videos(["a ball", "a ball"], frames=16, fps=4, seed=5, **given)
    assert torch.equal(made.codes, again.codes) and len(made.frames) == 16 and made.codes.shape == (4, 2, 2)
    still = given["first_frames"][-1:] if first else frames(2, last)[:1]
    tail = (16 - last) // 4 * 4  # where the first whole group of given last frames begins
    whole = [*(given["first_frames"] if first else []), *np.repeat(still, tail - first, 0)]
    whole += [*np.repeat(frames(2, last)[:1], 16 - last - tail, 0), *frames(2, last)]
    codes = codes_of(filling_emu, Video(np.stack(whole), 4))
    begun = -(-first // 4)
    kept = [*range(begun), *range(tail // 4, 4)]
    assert torch.equal(made.codes[kept], codes[kept])
    assert not torch.equal(made.codes[begun : tail // 4], codes[begun : tail // 4])
    assert made.settings["last_frames"] == last and made.settings.get("first_frames", 0) == first


def hidden_clip(latents):
    hidden = torch.ones(latents, 2, 2, dtype=torch.bool)
    return CodeSegment("video", torch.zeros(latents, 2, 2, dtype=torch.int64), {}, hidden=hidden)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda emu: emu.edit_images(picture(), "a", mask=np.ones((12, 8), bool)),
            "the mask is 12x8 pixels .* the picture 8x12",
        ),
        (lambda emu: emu.edit_images(picture(), "a", mask=np.ones((8, 12))), "the mask is float64"),
        (lambda emu: emu.edit_images(picture(), "a", mask=picture()), "the mask is of mode 'RGB'"),
        (lambda emu: emu.edit_images(picture(), "a", mask=[np.ones((8, 12), bool)] * 2), "2 masks for 1 pictures"),
        (
            lambda emu: emu.edit_images([[picture(), picture()]], "a", mask=np.ones((8, 12), bool)),
            "2 pictures beside a mask",
        ),
        (
            lambda emu: emu.edit_images(picture(), "a", mask=np.ones((8, 12), bool), size=(8, 8)),
            "has a picture of .8, 12. pixels .* and size .8, 8.",
        ),
        (
            lambda emu: emu.edit_images(picture(0, 8, 10), "a", mask=np.ones((8, 10), bool)),
            "multiples of the spatial factor 4",
        ),
        (
            lambda emu: emu.generate_videos("a", frames=8, first_frames=frames(), last_frames=frames()),
            "leaves nothing to generate",
        ),
        (
            lambda emu: emu.generate_videos("a", frames=8, size=(8, 12), last_frames=frames()),
            "last_frames are 8x8, the clip is 8x12",
        ),
        (
            lambda emu: emu.generate_videos(["a", "b"], frames=8, last_frames=[frames()]),
            "last_frames holds 1 clips for 2 prompts",
        ),
        (
            lambda emu: emu.generate_videos([["a", hidden_clip(2)]], frames=8, last_frames=frames()),
            "neither first or last frames nor overlap beside it",
        ),
        (
            lambda emu: emu.generate_videos([["a", hidden_clip(6)]], frames=24, overlap=4),
            "neither first or last frames nor overlap beside it",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(filling_emu, call, message, monkeypatch):
    monkeypatch.setattr("emu.generation.engine.Engine.fill_codes", None)
    with pytest.raises((TypeError, ValueError), match=message):
        call(filling_emu)


def test_a_model_that_was_not_trained_to_fill_in_says_so(tiny_emu, filling_emu):
    mask = np.ones((8, 12), bool)
    with pytest.raises(ValueError, match="was not trained for image_infill: its vocabulary has no control 'hole'"):
        tiny_emu.edit_images(picture(), "a", mask=mask)
    known = Emu(
        filling_emu.model,
        filling_emu.tokenizer,
        filling_emu.defaults,
        trained=Trained(tasks=("text_to_image", "video_infill")),
    )
    with pytest.raises(
        ValueError, match="not trained for image_infill; it was trained for text_to_image, video_infill"
    ):
        known.edit_images(picture(), "a", mask=mask)
    assert known.generate_videos("a", frames=8, fps=4, last_frames=frames())
