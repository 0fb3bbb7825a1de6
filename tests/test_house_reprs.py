"""What objects of ours look like in a notebook or a log: one short line that tells something, and no tensors."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from emu import ImageResult, Text, Video, VideoResult
from emu.demo.data import DigitsData
from emu.documents import CodeSegment, TextSegment
from emu.generation import Engine
from emu.modalities import MODALITIES
from emu_tokenizers.training.picture_data import PictureData
from emu_tokenizers.training.shapes_data import ShapesData

SQUARE = Image.new("RGB", (8, 8))
CODES = torch.zeros(2, 2, dtype=torch.int64)
LONG = "a very long prompt " * 40


@pytest.fixture(scope="module")
def objects(tiny_emu):
    tokenizer = tiny_emu.tokenizer
    return {
        "Emu": tiny_emu,
        "MultimodalTokenizer": tokenizer,
        "TextTokenizer": tokenizer.text,
        "Vocabulary": tokenizer.vocabulary,
        "Emu3Layout": tokenizer.layout,
        "Engine": Engine(tiny_emu.model, tokenizer.layout),
        "ImageModality": MODALITIES["image"],
        "GenerationDefaults": tiny_emu.defaults,
        "ImageResult": ImageResult(SQUARE, CODES, LONG, 7),
        "VideoResult": VideoResult([SQUARE] * 50, CODES[None], 8, LONG, 7),
        "Video": Video([SQUARE] * 3),
        "Text": Text("a red circle", 0.5),
        "TextSegment": TextSegment(torch.zeros(500, dtype=torch.int64)),
        "CodeSegment": CodeSegment("video", CODES[None], {"frames": 4, "fps": 8}),
        "TokenDocument": tokenizer.document([*["a red ", SQUARE] * 30, Video([SQUARE] * 8)]),
        "DigitsData": DigitsData(tiny_emu.tokenizer),
        "PictureData": PictureData(),
        "ShapesData": ShapesData(),
    }


def test_every_object_is_one_short_line_with_its_name(objects):
    for name, made in objects.items():
        for shown in (repr(made), str(made)):
            assert shown.startswith(f"{name}("), shown
            assert len(shown) <= 240 and "\n" not in shown and "tensor(" not in shown and " at 0x" not in shown, shown


def test_the_lines_tell_what_one_wants_to_know(objects):
    size = objects["Vocabulary"].size
    for name, told in {
        "Emu": "parameters, 314 ids, torch.float32 on cpu",
        "MultimodalTokenizer": f"Vocabulary({size} ids: 290 text, 8 controls, 16 vision), Emu3Layout(image, video)",
        "VideoResult": "50 frames of 8x8 pixels, 8 fps",
        "CodeSegment": "'video', 1x2x2 codes, {'fps': 8, 'frames': 4}, weight 1",
    }.items():
        assert told in repr(objects[name])
