"""Who says which digit a generated picture shows, where a clip moves, and how varied samples are: classifiers fitted on real pictures.

Both are support vector machines with an RBF kernel (needs the `demo` extra). They never see a generated picture or a held-out one
before they judge it, and their accuracy on the held-out real ones is reported beside what they say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from emu.demo.digits import DIRECTIONS, FRAMES, Digits, draw_clips, draw_stills

NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
FITTED_FRAMES = (0, FRAMES // 2 - 1, FRAMES - 1)
"""Frames of every real clip that the judge of clips is fitted on."""


def check_extra() -> None:
    """Raise ValueError where the packages of the `demo` extra are missing."""
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ValueError(f"the demo needs {' and '.join(missing)}: pip install 'emu-tokens[demo]'")


class DigitJudge:
    """Names the digit on a picture.

    Args:
        digits: real ones to learn from, drawn centred.
    """

    def __init__(self, digits: Digits) -> None:
        self._machine = _fit(_rows(draw_stills(digits.images)), digits.labels.numpy())

    def __call__(self, canvases: Tensor) -> Tensor:
        """uint8 (N, H, W) -> (N,) int64."""
        return torch.from_numpy(self._machine.predict(_rows(canvases))).long()


class ClipJudge:
    """Names the digit in a clip and the direction in which it moves.

    The digit is judged on every frame, moved so that its centre of mass lies in the middle; the frames' votes are summed. The direction
    is where the centre of mass goes from the first to the last frame.

    Args:
        digits: real ones to learn from, in clips of all directions.
    """

    def __init__(self, digits: Digits) -> None:
        ways = torch.arange(len(digits)) % len(DIRECTIONS)
        clips = draw_clips(digits.images, ways, torch.zeros(len(digits), 2))[:, list(FITTED_FRAMES)]
        labels = digits.labels.repeat_interleave(len(FITTED_FRAMES))
        self._machine = _fit(_rows(centred(clips.flatten(0, 1))), labels.numpy())

    def digits(self, clips: Tensor) -> Tensor:
        """uint8 (N, T, H, W) -> (N,) int64."""
        votes = self._machine.decision_function(_rows(centred(clips.flatten(0, 1))))  # (N * T, 10)
        return torch.from_numpy(votes).unflatten(0, clips.shape[:2]).mean(dim=1).argmax(dim=1)

    def directions(self, clips: Tensor) -> Tensor:
        """uint8 (N, T, H, W) -> (N,) int64 places in `DIRECTIONS`."""
        moved = centres(clips[:, -1]) - centres(clips[:, 0])  # (N, 2)
        headings = torch.tensor(list(DIRECTIONS.values()))
        return (moved @ headings.T).argmax(dim=1)


def centres(canvases: Tensor) -> Tensor:
    """Centres of mass (N, 2), x and y in pixels, of uint8 (N, H, W); the middle of an empty picture."""
    light = canvases.float() + 1e-3
    x, y = (torch.arange(side, dtype=torch.float32) for side in (light.shape[2], light.shape[1]))
    total = light.sum(dim=(1, 2))
    return torch.stack([(light.sum(dim=1) * x).sum(dim=1) / total, (light.sum(dim=2) * y).sum(dim=1) / total], dim=1)


def centred(canvases: Tensor) -> Tensor:
    """Pictures (N, H, W) uint8 moved by whole pixels so that their centres of mass lie in the middle."""
    height, width = canvases.shape[1:]
    offset = (centres(canvases) - torch.tensor([(width - 1) / 2, (height - 1) / 2])).round().long()
    down, across = torch.arange(height) + offset[:, 1:], torch.arange(width) + offset[:, :1]  # (N, H), (N, W)
    rows = torch.arange(len(canvases))[:, None, None]
    return canvases[rows, down[:, :, None] % height, across[:, None, :] % width]


def _fit(rows: np.ndarray, labels: np.ndarray):  # type: ignore[no-untyped-def]
    check_extra()
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(rows, labels)


def _rows(canvases: Tensor) -> np.ndarray:
    return (canvases.flatten(1).float() / 255.0).numpy()


def spread(canvases: Tensor, classes: Tensor) -> float | None:
    """Root mean squared distance between two samples of one class, each frame centred on its own mass.

    Args:
        canvases: uint8 pictures (N, H, W) or clips (N, T, H, W).
        classes: (N,) int64.

    Returns:
        The mean over classes of at least two samples, in grey levels a pixel; None where there is no such class.
    """
    frames = canvases[:, None] if canvases.ndim == 3 else canvases
    moved = centred(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    rows = moved.flatten(1).float()  # (N, T * H * W)
    spreads = []
    for number in classes.unique():
        some = rows[classes == number]
        if len(some) > 1:
            # Two independent samples differ by twice the (unbiased) variance.
            spreads.append(2 * float(some.var(dim=0, unbiased=True).mean()))
    return math.sqrt(sum(spreads) / len(spreads)) if spreads else None


def variety(samples: Tensor, classes: Tensor, real: Tensor, real_classes: Tensor) -> float | None:
    """How varied samples of a class are beside real ones: 1 for as varied, 0 for copies of one picture.

    Args:
        samples: uint8 pictures (N, H, W) or clips (N, T, H, W) that a model made.
        classes: (N,) int64, what each should show.
        real: real ones of the same shape.
        real_classes: theirs.

    Returns:
        The ratio of the two spreads (see `spread`), None where classes have a single sample.
    """
    ours, theirs = spread(samples, classes), spread(real, real_classes)
    return None if ours is None or not theirs else round(ours / theirs, 3)


def variety_of_answers(answers: Sequence[str], expected: Sequence[str]) -> float:
    """How many different answers there are, beside how many there should be: a ratio of two perplexities."""
    return round(_perplexity(answers) / _perplexity(expected), 3)


def _perplexity(texts: Sequence[str]) -> float:
    shares = torch.tensor(list(Counter(texts).values()), dtype=torch.float64) / len(texts)
    return float(torch.exp(-(shares * shares.log()).sum()))
