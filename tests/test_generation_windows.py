"""`window="auto"`: candidates are timed once, and then the fastest is kept; the codes are the same with any."""

import pytest
import torch

from emu.generation.window_choice import CANDIDATES, FastestWindow


@pytest.mark.parametrize("seconds", [(1.0, 3.0), (3.0, 1.0)])
def test_each_candidate_is_timed_once_and_the_fastest_is_kept(seconds):
    choice = FastestWindow(torch.device("cpu"))
    found = []
    for _ in range(6):
        found.append(choice.pick("pictures"))
        choice.note("pictures", found[-1], dict(zip(CANDIDATES, seconds, strict=True))[found[-1]])
    fastest = CANDIDATES[seconds.index(min(seconds))]
    assert found == [*CANDIDATES, *[fastest] * 4]
    assert choice.pick("clips") == CANDIDATES[0]


def test_a_time_that_includes_preparation_does_not_count():
    choice = FastestWindow(torch.device("cpu"))
    choice.note("pictures", 1, None)
    assert choice.pick("pictures") == 1


def test_every_batch_has_the_same_codes_whatever_is_tried(tiny_emu):
    prompts = ["a ball", "a red circle"] * 5
    plain, chosen = (
        tiny_emu.generate_images(prompts, size=(16, 16), batch_size=2, window=window, seed=2, deterministic=True)
        for window in (1, "auto")
    )
    assert [result.codes.tolist() for result in plain] == [result.codes.tolist() for result in chosen]
    clips = tiny_emu.generate_videos("a ball", window="auto", seed=2, deterministic=True)
    assert torch.equal(clips[0].codes, tiny_emu.generate_videos("a ball", seed=2, deterministic=True)[0].codes)


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "fast", None])
def test_other_windows_are_refused_before_work(tiny_emu, window):
    with pytest.raises((ValueError, TypeError), match="window is"):
        tiny_emu.generate_images("a ball", window=window)
