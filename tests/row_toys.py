"""Sources of documents whose lengths are known, shared by the tests of rows."""

import numpy as np
import torch

from emu.documents import TokenDocument


class Lengths:
    """Documents of given lengths, every token of which is the document's number.

    Args:
        lengths: of the documents.
        dropped: tokens that a document of an odd key is shorter.
    """

    def __init__(self, lengths, dropped=0):
        self._lengths, self._dropped = np.asarray(lengths, np.int64), dropped
        self.mean_length = float(self._lengths.mean()) - dropped / 2
        self.max_length = int(self._lengths.max())

    def __len__(self):
        return len(self._lengths)

    def lengths(self):
        return self._lengths

    def token_lengths(self, numbers, keys):
        return self._lengths[numbers] - self._dropped * (keys % 2)

    def document(self, index, key):
        length = int(self._lengths[index]) - self._dropped * (key % 2)
        return TokenDocument(torch.full((length,), index), torch.ones(length))


def draw_lengths(count, seed=0, longest=200):
    """Lengths as of captions and pictures: a spread of short ones and three sizes."""
    draw = np.random.default_rng(seed)
    texts = np.clip(draw.lognormal(3.0, 0.8, count).astype(np.int64), 1, longest)
    return np.where(draw.random(count) < 0.5, texts, draw.choice([64, 96, 144], count))
