"""Adding a layout from a single file: other controls and another header, and everything from training to pictures works with it."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, EmuConfig, MultimodalTokenizer
from emu.documents import CodeSegment, TextSegment
from emu.generation import Engine
from emu.layouts import Cursor, Layout, grid_template, register, unregister
from emu.packing import pack
from emu.training.module import EmuModule

GRID = (2, 3)


class FixedGrid(Layout):
    """As Chameleon writes pictures, all of one size: BOI, the codes, EOI; no rows, no frames, no image mark and no text in the header."""

    name = "fixed grid"
    controls = ("pad", "bos", "eos", "boi", "eoi")

    def header(self, modality, grid, meta=None):
        if (modality, tuple(grid)) != ("image", GRID):
            raise ValueError(
                f"layout {self.name!r} holds pictures of {GRID} codes alone, got {modality!r} {tuple(grid)}"
            )
        return [self.vocabulary.control("boi")]

    def header_choices(self, begun):
        return ()

    def parse_header(self, ids):
        return "image", GRID, {}

    def grid_block(self, grid, ranges):
        return grid_template(grid, ranges, ([], [], [self.vocabulary.control("eoi")]), last=False)


@pytest.fixture
def tokenizer(tiny_emu):
    register(FixedGrid.name, FixedGrid)
    yield MultimodalTokenizer(tiny_emu.tokenizer.text, tiny_emu.tokenizer.vision, FixedGrid.name, modalities=["image"])
    unregister(FixedGrid.name)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8))


def test_a_layout_is_added_from_one_file(tokenizer, tmp_path):
    layout, vocabulary = tokenizer.layout, tokenizer.vocabulary
    assert list(vocabulary.controls) == ["pad", "bos", "eos", "boi", "eoi"]

    # Built, parsed, constrained.
    document = tokenizer.document(["a red circle", picture(0), "a ball"])
    boi, eoi = vocabulary.control("boi"), vocabulary.control("eoi")
    start = document.spans[1].start
    assert document.spans[1].length == 8 and document.ids[[start, start + 7]].tolist() == [boi, eoi]
    words, codes, more = layout.parse(document.ids)
    assert (
        isinstance(words, TextSegment)
        and isinstance(codes, CodeSegment)
        and layout.decode_text(more.ids.tolist()) == "a ball"
    )
    assert (
        torch.equal(codes.codes, tokenizer.segments(picture(0))[0].codes)
        and layout.spans(document.ids) == document.spans
    )
    cursor = Cursor(layout)
    for index in document.ids.tolist():
        cursor.advance(index)
    assert cursor.ended and layout.constrain(document.ids[: start + 1]) == (vocabulary.range("vision"),)
    assert layout.constrain(document.ids[: start + 7]) == ((eoi, 1),)

    # Trained for one step.
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    module = EmuModule(
        EmuConfig(vocab_size=vocabulary.size, vocabulary=vocabulary.to_dict(), initializer_range=0.3, **sizes)
    )
    module.configure_model()
    packed = pack([tokenizer.document(["a red circle", picture(seed)]) for seed in range(4)], row_length=96)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-2)
    before = module(packed).loss
    before.backward()
    optimizer.step()
    assert module(packed).loss < before

    # Generated, by the engine and by an `Emu` that was saved and read.
    model = module.model.eval()
    prompt = tokenizer.prompt(["a red circle"], "image", GRID)
    assert prompt[-1] == boi
    drawn = Engine(model, layout).generate_codes([prompt], grid=GRID, guidance_scale=2.0, seed=3)
    assert drawn.shape == (1, *GRID) and 0 <= int(drawn.min()) <= int(drawn.max()) < 16
    Emu(model, tokenizer).save_pretrained(tmp_path / "model")
    emu = Emu.from_pretrained(tmp_path / "model")
    (result,) = emu.generate_images("a red circle", size=(8, 12), guidance_scale=2.0, seed=3)
    assert torch.equal(result.codes, drawn[0]) and result.image.size == (12, 8)
    assert all(isinstance(item, str | Image.Image) for item in emu.generate(["a", picture(1)], size=(8, 12), seed=1))
    with pytest.raises(ValueError, match="holds pictures of"):
        emu.generate_images("a red circle", size=(8, 8))
