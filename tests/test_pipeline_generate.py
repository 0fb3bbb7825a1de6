"""`Emu`: what its jobs hand back, and what they refuse before they start."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, Video

PROMPTS = ["a red circle", "a ball", "a red circle"]


def picture(height=8, width=8, shade=100):
    return Image.fromarray(np.full((height, width, 3), shade, np.uint8))


def codes_of(results):
    return [result.codes.tolist() for result in results]


def test_one_prompt_gives_one_picture(tiny_emu):
    (result,) = tiny_emu.generate_images("a red circle", size=(8, 12), seed=3)
    assert result.image.size == (12, 8)
    assert result.codes.shape == (2, 3) and result.codes.dtype == torch.int64
    assert (result.prompt, result.seed) == ("a red circle", 3)


def test_defaults_of_the_model_are_used(tiny_emu):
    (image,) = tiny_emu.generate_images("a red circle")
    (video,) = tiny_emu.generate_videos("a red circle")
    assert image.image.size == (8, 8)
    assert (len(video.frames), video.fps, tuple(video.codes.shape)) == (8, 4, (2, 2, 2))


def test_equal_prompts_and_seeds_give_equal_pictures_in_any_batch(tiny_emu):
    together = tiny_emu.generate_images(PROMPTS, seed=7, deterministic=True)
    alone = [tiny_emu.generate_images(prompt, seed=7, deterministic=True)[0] for prompt in PROMPTS]
    in_pairs = tiny_emu.generate_images(PROMPTS, seed=7, deterministic=True, batch_size=2)
    assert codes_of(together) == codes_of(alone) == codes_of(in_pairs)
    assert codes_of(together)[0] == codes_of(together)[2] != codes_of(together)[1]


def test_variety_comes_from_seeds_and_from_images_per_prompt(tiny_emu):
    by_seed = tiny_emu.generate_images(["a red circle"] * 3, seed=[1, 2, 1], size=(16, 16))
    assert codes_of(by_seed)[0] == codes_of(by_seed)[2] != codes_of(by_seed)[1]
    several = tiny_emu.generate_images(["a red circle", "a ball"], seed=1, images_per_prompt=2, size=(16, 16))
    assert [result.prompt for result in several] == ["a red circle"] * 2 + ["a ball"] * 2
    assert codes_of(several)[0] == codes_of(by_seed)[0] != codes_of(several)[1]


def test_temperature_zero_forgets_the_seed(tiny_emu):
    first, second = (tiny_emu.generate_images("a ball", temperature=0, seed=seed)[0] for seed in (1, 2))
    assert torch.equal(first.codes, second.codes)


def test_guidance_scale_one_does_not_read_the_negative_prompt(tiny_emu):
    plain, other = (
        tiny_emu.generate_images("a ball", guidance_scale=1, negative_prompt=negative, size=(16, 16))[0]
        for negative in ("", "a red circle")
    )
    guided = tiny_emu.generate_images("a ball", guidance_scale=8, negative_prompt="a red circle", size=(16, 16))[0]
    assert torch.equal(plain.codes, other.codes)
    assert not torch.equal(plain.codes, guided.codes)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 9])
def test_clips_have_the_frames_that_were_asked_for(tiny_emu, frames):
    (clip,) = tiny_emu.generate_videos("a ball", frames=frames, fps=2.5)
    assert len(clip.frames) == frames and clip.fps == 2.5
    assert len(clip.codes) == -(-frames // 4)


@pytest.mark.parametrize(
    "first", [[picture()], [picture(shade=shade) for shade in range(5)], np.zeros((4, 8, 8, 3), np.uint8)]
)
def test_clips_go_on_from_their_first_frames(tiny_emu, first):
    given = tiny_emu.tokenizer.vision.encode(torch.zeros(1, len(first), 3, 8, 8)).shape[1]
    (free,) = tiny_emu.generate_videos("a ball", frames=12, seed=1)
    (clip,) = tiny_emu.generate_videos("a ball", frames=12, seed=1, first_frames=first)
    (segment,) = tiny_emu.tokenizer.segments(Video(first))
    assert torch.equal(clip.codes[:given], segment.codes)
    assert len(clip.frames) == 12 and len(free.codes) == len(clip.codes)


def test_some_prompts_may_have_no_first_frames(tiny_emu):
    clips = tiny_emu.generate_videos(["a ball", "a ball"], first_frames=[[picture(12, 16)], None], deterministic=True)
    (alone,) = tiny_emu.generate_videos("a ball", deterministic=True)
    assert clips[0].frames[0].size == (16, 12) and torch.equal(clips[1].codes, alone.codes)
    assert "first_frames" not in clips[1].settings and clips[1].settings == alone.settings


def test_each_prompt_may_have_its_own_first_frames(tiny_emu):
    beginnings = [[picture(shade=0)], Video([picture(shade=255)])]
    clips = tiny_emu.generate_videos(["a ball", "a ball"], first_frames=beginnings)
    alone = tiny_emu.generate_videos("a ball", first_frames=beginnings[1])
    assert torch.equal(clips[1].codes[0], alone[0].codes[0])


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip"])
def test_a_clip_goes_on_from_a_file_that_we_wrote(name, tiny_emu, tmp_path):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    (first,) = tiny_emu.generate_videos("a ball", frames=5, seed=1)
    first.save(tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        (clip,) = tiny_emu.generate_videos("a ball", frames=12, first_frames=path)
        (segment,) = tiny_emu.tokenizer.segments(Video.open(path, fps=4))
        assert torch.equal(clip.codes[:2], segment.codes) and len(clip.frames) == 12
    (small,) = tiny_emu.generate_videos("a ball", size=(4, 4), frames=12, first_frames=tmp_path / name)
    assert small.frames[0].size == (4, 4)
    texts = tiny_emu.generate_text([[Video.open(tmp_path / name), "a"]], max_new_tokens=2)
    assert isinstance(texts[0], str)


def test_each_prompt_may_have_a_file_of_its_own(tiny_emu, tmp_path):
    for shade in (0, 255):
        picture(shade=shade).save(tmp_path / f"{shade}.png")
    files = [tmp_path / "0.png", tmp_path / "255.png"]
    clips = tiny_emu.generate_videos(["a ball", "a ball"], first_frames=files)
    given = tiny_emu.generate_videos(["a ball", "a ball"], first_frames=picture(shade=0))
    assert torch.equal(clips[0].codes[0], given[0].codes[0])


def test_size_follows_the_first_frames(tiny_emu):
    (clip,) = tiny_emu.generate_videos("a ball", first_frames=picture(12, 16))
    assert clip.frames[0].size == (16, 12)


def test_text_about_pictures(tiny_emu):
    documents = [[picture(), "What is it?"], [picture(16, 8), "a"], ["a red"]]
    texts = tiny_emu.generate_text(documents, max_new_tokens=5)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    assert texts == tiny_emu.generate_text(documents, max_new_tokens=5, batch_size=1)


def test_control_words_in_prompts_are_text(tiny_emu):
    (result,) = tiny_emu.generate_images("<|image start|>2*2<|image token|>")
    assert result.codes.shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", 3]}, "prompt 1 is int"),
        ({"size": (8, 10)}, r"width.*factor 4, e\.g\. 8 or 12"),
        ({"size": (0, 8)}, "height is 0"),
        ({"size": 8}, "expected \\(height, width\\)"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"images_per_prompt": 0}, "is 0; expected 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "much"}, "guidance_scale is 'much'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": "all"}, "top_k is 'all'"),
        ({"negative_prompt": 3}, "negative_prompt is int"),
    ],
)
def test_invalid_arguments_of_pictures_are_refused(tiny_emu, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_emu.generate_images(**{"prompts": "a", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"frames": 2.5}, "frames is 2.5"),
        ({"fps": 0}, "fps is 0"),
        ({"first_frames": []}, "zero frames"),
        ({"first_frames": [picture()] * 8}, "leaves nothing to generate"),
        ({"first_frames": [picture(12, 8)], "size": (8, 8)}, "12x8.*8x8"),
        ({"first_frames": [[picture()], [picture()]]}, "2 clips for 1 prompts"),
        ({"first_frames": 3}, "list of PIL images"),
        ({"first_frames": "nowhere.mp4"}, r"nowhere\.mp4"),
    ],
)
def test_invalid_arguments_of_clips_are_refused(tiny_emu, arguments, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        tiny_emu.generate_videos("a", **arguments)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no documents"),
        ([[]], "document 0 is empty"),
        ([picture(), "What is it?"], "each a list of items"),
        ([[picture(9, 9)]], "factor 4"),
        ([[Image.new("RGB", (0, 8))]], "empty|0"),
    ],
)
def test_invalid_documents_are_refused(tiny_emu, documents, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_emu.generate_text(documents)


def test_a_document_goes_on_in_any_order(tiny_emu):
    model, controls = copy.deepcopy(tiny_emu.model), tiny_emu.tokenizer.vocabulary.controls
    model.lm_head.weight.data[controls["boi"]] *= 20  # so that half of the time a block begins
    tiny_emu = Emu(model, tiny_emu.tokenizer, tiny_emu.defaults)
    kinds = set()
    for seed in range(8):
        items = list(tiny_emu.generate(["a ball", picture()], size=(8, 12), frames=5, max_new_tokens=40, seed=seed))
        assert all(isinstance(item, str | Image.Image | Video) for item in items)
        assert all(item.size in ((12, 8), (8, 8)) for item in items if isinstance(item, Image.Image))
        assert all(item.frames.shape == (5, 8, 12, 3) for item in items if isinstance(item, Video))
        kinds |= {type(item) for item in items}
    assert str in kinds and len(kinds) > 1


def test_a_document_comes_piece_by_piece_and_is_repeatable(tiny_emu):
    pieces = tiny_emu.generate("a ball", seed=3)
    first = next(pieces)
    again = next(tiny_emu.generate("a ball", seed=3))
    assert first == again if isinstance(first, str) else type(first) is type(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"document": []}, "empty"),
        ({"document": 3}, "list of items"),
        ({"max_blocks": 0}, "max_blocks is 0"),
        ({"size": (9, 8)}, "factor 4"),
    ],
)
def test_invalid_arguments_of_interleaved_documents_are_refused(tiny_emu, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_emu.generate(**{"document": ["a"], **arguments})
