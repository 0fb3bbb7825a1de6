"""Clips made of pictures: each bounces, or turns to a side.

A picture is reduced to 48x48 on white. A clip has four frames; it bounces by 8 pixels at a time, and turns by a quarter. Both are exact on
the grid of codes that stand for 8x8 pixels, so that frames are judged exactly too: undone, they are one picture four times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

FRAMES, FPS = 4, 4
SMALL, STEP = 48, 8
TURNS = {"turning left": 1, "turning right": -1}
"""Quarters to the left from frame to frame."""
HEIGHTS = (2 * STEP, STEP, 0, STEP)
"""How far a bouncing picture is from the upper edge in each frame."""
MOTIONS = ("bouncing", *TURNS)


def moving_caption(caption: str, motion: str) -> str:
    """Caption of a clip: "cat bouncing"."""
    return f"{caption} {motion}"


def reduced(picture: np.ndarray) -> np.ndarray:
    """(48, 48, 3) uint8: a picture (64, 64, 3) as it is in clips."""
    return np.asarray(Image.fromarray(picture).resize((SMALL, SMALL), Image.Resampling.LANCZOS))


def frame_of(small: np.ndarray, motion: str, number: int, side: int) -> np.ndarray:
    """Frame `number` of a clip, (side, side, 3) uint8, of a picture (48, 48, 3)."""
    left = (side - SMALL) // 2
    top = HEIGHTS[number] if motion == "bouncing" else left
    frame = np.full((side, side, 3), 255, np.uint8)
    frame[top : top + SMALL, left : left + SMALL] = np.rot90(small, number * TURNS.get(motion, 0))
    return frame


def clip_of(picture: np.ndarray, motion: str) -> np.ndarray:
    """(4, 64, 64, 3) uint8: a picture in motion."""
    small = reduced(picture)
    return np.stack([frame_of(small, motion, number, len(picture)) for number in range(FRAMES)])


def undone(clip: np.ndarray, motion: str) -> np.ndarray:
    """(4, 48, 48, 3) uint8: the picture in each frame of a clip (4, H, W, 3), if it moves in this way."""
    left = (clip.shape[2] - SMALL) // 2
    tops = HEIGHTS if motion == "bouncing" else (left,) * FRAMES
    return np.stack(
        [
            np.rot90(frame[top : top + SMALL, left : left + SMALL], -number * TURNS.get(motion, 0))
            for number, (frame, top) in enumerate(zip(clip, tops, strict=True))
        ]
    )


def spread(clip: np.ndarray, motion: str) -> float:
    """How much the frames differ once a motion is undone: mean squared difference from their mean; 0 for a real clip of this motion."""
    pictures = undone(clip, motion).astype(np.float64)
    return float(((pictures - pictures.mean(0)) ** 2).mean())


def moves_as(clips: Sequence[np.ndarray], motions: Sequence[str]) -> np.ndarray:
    """(N,) bool: whether undoing a clip's motion leaves less of a difference between frames than undoing any other; draws count."""
    return np.array(
        [
            spread(clip, motion) <= min(spread(clip, other) for other in MOTIONS)
            for clip, motion in zip(clips, motions, strict=True)
        ]
    )
