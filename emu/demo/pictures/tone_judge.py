"""Whether a drawing is the picture that was asked for, told by all real pictures: no copy of a training picture counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emu.demo.pictures.emoji import people_of
from emu.own_data.picture_measures import distances, nearest_caption, small
from emu.own_data.picture_store import PictureStore


def share(right: Sequence[bool] | np.ndarray) -> float:
    """How many are right, of one."""
    return round(float(np.mean(right)), 4)


def _nearest(found: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """(N,) bool: whether of distances (N, M) that of each one's row is the least."""
    return found[np.arange(len(rows)), list(rows)] <= found.min(1)


class ToneJudge:
    """Compares drawings at 16x16 pixels with the pictures of a store.

    Args:
        store: written by `StoreEmoji`.
    """

    def __init__(self, store: PictureStore) -> None:
        self.store = store
        self.train = store.rows("train")
        self.real = small(np.asarray(store.pictures))
        people = [list(tones.values()) for tones in people_of(store.captions).values()]
        self._person = {row: rows for rows in people for row in rows}
        self._train_captions = [store.captions[row] for row in self.train]

    def is_nearest(self, drawn: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """(N,) bool: whether of all real pictures, training ones included, the asked one is the nearest to a drawing.

        Args:
            drawn: (N, H, W, 3) uint8.
            rows: N rows of what was asked for.
        """
        return _nearest(distances(small(drawn), self.real), rows)

    def measure(self, name: str, drawn: np.ndarray, rows: Sequence[int]) -> dict[str, float]:
        """Figures of this name.

        Returns:
            Shares of drawings of which `is_nearest` holds, and of those that are nearer to the asked picture than to the same person's in
            the four other tones.
        """
        found = distances(small(drawn), self.real)
        right = [found[place, row] <= found[place, self._person[row]].min() for place, row in enumerate(rows)]
        return {f"{name}_is_nearest": share(_nearest(found, rows)), f"{name}_tone_right": share(right)}

    def baselines(self, name: str, rows: Sequence[int]) -> dict[str, float]:
        """The same of the training pictures with the nearest captions (`..._copied`), and of the mean training picture (`..._mean`)."""
        pictures = np.asarray(self.store.pictures)
        copied = pictures[[self.nearest_caption(self.store.captions[row]) for row in rows]]
        return {
            f"{figure}_{kind}": value
            for kind, made in (("copied", copied), ("mean", self.mean_pictures(len(rows))))
            for figure, value in self.measure(name, made, rows).items()
        }

    def mean_pictures(self, count: int) -> np.ndarray:
        """(count, H, W, 3) uint8: the mean of the training pictures."""
        mean = np.asarray(self.store.pictures)[self.train].mean(0, keepdims=True)
        return np.repeat(mean.astype(np.uint8), count, 0)

    def nearest_caption(self, caption: str) -> int:
        """The row of the training picture whose caption is nearest."""
        return self.train[nearest_caption(caption, self._train_captions)]

    def nearest_picture(self, row: int) -> int:
        """The row of the training picture that is nearest to a picture."""
        return self.train[int(distances(self.real[[row]], self.real[self.train]).argmin())]
