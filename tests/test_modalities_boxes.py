"""The third modality: boxes through layout, parsing, header and constraint, from one file."""

import numpy as np
import pytest
import torch

from emu.layouts import Emu3Layout, Emu35Layout
from emu.modalities import MODALITIES
from emu.modalities.boxes import Boxes
from emu.vocabulary import Vocabulary


class Bytes:
    """A text tokenizer of bytes."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def layout_of(kind):
    vocabulary = Vocabulary.build(256, {"vision": 16, "boxes": 32})
    return kind(vocabulary, Bytes(), ("image", "boxes"))


def test_boxes_are_registered_beside_the_others():
    assert {"boxes", "image", "video"} <= set(MODALITIES)


@pytest.mark.parametrize("kind", [Emu3Layout, Emu35Layout])
def test_boxes_go_through_the_grammar_and_back(kind):
    layout = layout_of(kind)
    boxes = Boxes([[8, 0, 15, 7], [0, 9, 5, 14]])
    document = layout.build([MODALITIES["boxes"].encode(boxes, None)])
    (segment,) = layout.parse(document.ids)
    assert MODALITIES["boxes"].decode(segment, None) == boxes
    first, count = layout.vocabulary.range("boxes")
    weighed = document.ids[(document.weights > 0) & (document.ids >= first) & (document.ids < first + count)]
    assert len(weighed) == 8
    for place in range(1, len(document) - 1):
        allowed = layout.constrain(document.ids[:place])
        assert any(start <= int(document.ids[place]) < start + size for start, size in allowed)


def test_order_is_canonical():
    one, other = (
        Boxes([[8, 0, 15, 7], [0, 9, 5, 14], [0, 2, 5, 4]]),
        Boxes([[0, 2, 5, 4], [8, 0, 15, 7], [0, 9, 5, 14]]),
    )
    assert one == other and one.bins[0].tolist() == [0, 2, 5, 4]


def test_corners_and_bins_agree():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first = rng.integers(0, 31, (3, 2))
        last = rng.integers(first, 32)
        boxes = Boxes(np.concatenate([first, last], 1))
        assert Boxes.from_unit(boxes.to_unit()) == boxes


def test_codes_that_are_no_box_still_decode():
    layout = layout_of(Emu3Layout)
    ids = layout.block("boxes", (1, 4)).fill(torch.tensor([[9, 9, 3, 20]]))
    header = torch.tensor(layout.header("boxes", (1, 4)))
    (segment,) = layout.parse(torch.cat([header, ids]))
    assert MODALITIES["boxes"].decode(segment, None).bins.tolist() == [[3, 9, 9, 20]]


@pytest.mark.parametrize(
    "bins",
    [np.zeros((0, 4), int), np.zeros((2, 3), int), [[0, 0, 32, 3]], [[-1, 0, 2, 3]], [[5, 0, 2, 3]], np.zeros((1, 4))],
)
def test_what_is_no_box_is_refused(bins):
    with pytest.raises(ValueError, match="expected"):
        Boxes(bins)


def test_the_file_is_the_whole_change():
    import inspect

    import emu.modalities.boxes as module

    assert len(inspect.getsource(module).splitlines()) <= 100
