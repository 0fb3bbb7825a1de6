"""Clips longer than those of training are made in parts, each of which begins with the last latent frames there are."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, Video
from emu.generation import Engine
from emu.trained import Trained

OPTIONS = {"fps": 4, "seed": 3, "deterministic": True}


@pytest.fixture
def calls(monkeypatch):
    """Given codes and seeds of each part that was drawn, and the codes."""
    found = []
    generate = Engine.generate_grids

    def watched(self, *arguments, prefix_codes, seed, **options):
        codes = generate(self, *arguments, prefix_codes=prefix_codes, seed=seed, **options)
        found.append((prefix_codes, seed, codes))
        return codes

    monkeypatch.setattr(Engine, "generate_grids", watched)
    return found


def test_a_long_clip_goes_on_from_its_last_latent_frames(tiny_emu, calls):
    (clip,) = tiny_emu.generate_videos("a ball", frames=19, overlap=3, **OPTIONS)
    assert len(clip.frames) == 19 and clip.codes.shape == (5, 2, 2)
    assert clip.settings["overlap"] == 3 and clip.settings["frames"] == 19
    drawn = [codes for _, _, codes in calls]
    assert len(drawn) == 4 and calls[0][0] is None and calls[0][1] == [3]
    for (prefix, _, codes), before in zip(calls[1:], drawn, strict=False):
        assert torch.equal(prefix, before[:, -1:]) and torch.equal(codes[:, :1], prefix)
    assert torch.equal(clip.codes, torch.cat([drawn[0][0], *(codes[0, 1:] for codes in drawn[1:])]))
    assert len({seeds[0] for _, seeds, _ in calls}) == 4  # noise that repeats would repeat the motion


def test_its_first_part_is_the_clip_of_the_trained_length_and_a_short_clip_has_no_other(tiny_emu):
    (short,) = tiny_emu.generate_videos("a ball", frames=8, **OPTIONS)
    (same,) = tiny_emu.generate_videos("a ball", frames=8, overlap=4, **OPTIONS)
    (long,) = tiny_emu.generate_videos("a ball", frames=16, overlap=4, **OPTIONS)
    assert torch.equal(short.codes, same.codes) and torch.equal(short.codes, long.codes[:2])


def test_long_clips_are_the_same_in_any_batch_and_may_begin_with_frames(tiny_emu):
    prompts, options = ["a ball", "a"], {**OPTIONS, "frames": 20, "overlap": 4}
    together = tiny_emu.generate_videos(prompts, **options)
    alone = [tiny_emu.generate_videos(prompt, **options)[0] for prompt in prompts]
    assert [clip.codes.tolist() for clip in together] == [clip.codes.tolist() for clip in alone]
    for length in (1, 12):
        first = Video(np.random.default_rng(0).integers(0, 255, (length, 8, 8, 3), np.uint8), 4)
        (clip,) = tiny_emu.generate_videos("a ball", first_frames=first, **options)
        (segment,) = tiny_emu.tokenizer.segments(first)
        assert torch.equal(clip.codes[: len(segment.codes)], segment.codes) and len(clip.frames) == 20


@pytest.mark.parametrize(
    ("overlap", "message"),
    [(0, "overlap is 0"), (2.5, "overlap is 2.5"), (5, "overlap is 5 frames, and a part has 8 .* at most 4")],
)
def test_an_overlap_that_cannot_be_is_refused(tiny_emu, overlap, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tiny_emu.iter_videos("a", frames=20, overlap=overlap)


def test_a_model_that_continues_no_clips_makes_no_long_ones(tiny_emu):
    trained = Trained(("text_to_video",), ((8, 8),), (8,), (4,))
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=trained)
    with pytest.raises(ValueError, match="not trained for video_continuation"):
        emu.iter_videos("a", frames=20, overlap=4)
    able = Trained(("text_to_video", "video_continuation"), ((8, 8),), (8,), (4,))
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=able)
    assert emu.iter_videos("a", frames=20, overlap=4, strict=True)  # each part is as long as what it saw
    with pytest.raises(ValueError, match="20 frames"):
        emu.iter_videos("a", frames=20, strict=True)


def test_a_picture_may_begin_a_long_clip(tiny_emu):
    first = Image.new("RGB", (8, 8), "red")
    assert len(tiny_emu.generate_videos("a", frames=13, overlap=4, first_frames=first)[0].frames) == 13
