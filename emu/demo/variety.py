"""How varied samples are: a model that draws one good seven again and again is right every time, and useless."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from emu.demo.judge import centred


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
