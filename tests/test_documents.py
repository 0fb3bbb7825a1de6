"""Clips and token documents refuse what would give wrong output later."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu.documents import TokenDocument, Video


def test_frames_of_pil_images_and_arrays_are_the_same_clip():
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    clip = Video([Image.fromarray(frame) for frame in array], fps=12.5)
    assert np.array_equal(clip.frames, Video(array).frames) and len(clip) == 3 and clip.fps == 12.5
    assert np.array_equal(np.asarray(clip.images()[2]), array[2])


@pytest.mark.parametrize(
    "frames, fps, error, message",
    [
        ([], 8, ValueError, "zero frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), 8, ValueError, "empty"),
        (np.zeros((2, 4, 4), np.uint8), 8, ValueError, r"expected uint8 \(T, H, W, 3\)"),
        (np.zeros((2, 4, 4, 3)), 8, ValueError, "uint8"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], 8, ValueError, "unequal sizes"),
        (["a.png"], 8, TypeError, "PIL images"),
        ([Image.new("RGB", (4, 4))], 0, ValueError, "fps is 0"),
    ],
)
def test_clips_that_cannot_be(frames, fps, error, message):
    with pytest.raises(error, match=message):
        Video(frames, fps)


def test_weights_must_match_ids():
    with pytest.raises(ValueError, match="weights"):
        TokenDocument(torch.zeros(3, dtype=torch.int64), torch.zeros(2))
