"""A layout states its controls and its header: sizes as tokens, as Lumina-mGPT writes them, beside Emu3's plain text."""

import pytest
import torch

from emu import Emu3Layout, Vocabulary
from emu.documents import CodeSegment, TextSegment
from emu.generation import Engine
from emu.layouts import LAYOUTS, Cursor, Layout, grid_template
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import CONTROLS

SIDES = 6


class SizeTokens(Layout):
    """BOI, a token of the height, one of the width, rows that end in a new-line token, EOI; no text tokenizer is needed."""

    name = "size tokens"
    controls = ("pad", "bos", "eos", "eol", "boi", "eoi")

    def header(self, modality, grid, meta=None):
        if modality != "image" or not all(1 <= side <= SIDES for side in grid):
            raise ValueError(f"{self.name!r} holds pictures of up to {SIDES} codes a side, got {modality!r} {grid}")
        first = self.vocabulary.range("size")[0]
        return [self.vocabulary.control("boi"), *(first + side - 1 for side in grid)]

    def header_choices(self, begun):
        return (self.vocabulary.range("size"),) if len(begun) < 3 else ()

    def parse_header(self, ids):
        first = self.vocabulary.range("size")[0]
        return "image", tuple(index - first + 1 for index in ids[1:]), {}

    def grid_block(self, grid, ranges):
        controls = self.vocabulary.controls
        return grid_template(grid, ranges, ([controls["eol"]], [], [controls["eoi"]]), last=True)


VOCABULARY = Vocabulary.build(20, {"size": SIDES, "vision": 16}, SizeTokens.controls)


def layout_of():
    return SizeTokens(VOCABULARY, modalities=["image"])


def segments_of(seed):
    draw = torch.Generator().manual_seed(seed)
    grid = torch.randint(1, SIDES + 1, (2,), generator=draw).tolist()
    return [
        TextSegment(torch.randint(0, 20, (3,), generator=draw)),
        CodeSegment("image", torch.randint(0, 16, grid, generator=draw)),
        CodeSegment("image", torch.randint(0, 16, grid[::-1], generator=draw)),
    ]


def engine_of(**options):
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Engine(
        EmuForCausalLM(EmuConfig(vocab_size=VOCABULARY.size, initializer_range=0.3, **sizes)).eval(), layout_of()
    )


def test_a_block_is_its_sizes_its_rows_and_its_end():
    codes, controls = torch.tensor([[1, 2, 3], [4, 5, 6]]), VOCABULARY.controls
    size, code = VOCABULARY.range("size")[0], VOCABULARY.range("vision")[0]
    rows = [code + 1, code + 2, code + 3, controls["eol"], code + 4, code + 5, code + 6, controls["eol"]]
    wanted = [controls["boi"], size + 1, size + 2, *rows, controls["eoi"]]
    assert layout_of().build([CodeSegment("image", codes)], add_special=False).ids.tolist() == wanted


def test_parse_inverts_build_and_spans_are_those_of_build():
    layout = layout_of()
    for seed in range(20):
        document = layout.build(segments_of(seed))
        read = layout.parse(document.ids)
        assert all(
            torch.equal(one.codes, other.codes) for one, other in zip(segments_of(seed)[1:], read[1:], strict=True)
        )
        assert layout.spans(document.ids) == document.spans


def test_the_cursor_allows_what_build_writes_and_sizes_alone_after_the_opening():
    layout = layout_of()
    for seed in range(20):
        cursor = Cursor(layout)
        for index in layout.build(segments_of(seed)).ids.tolist():
            cursor.advance(index)
        assert cursor.ended
    begun = [VOCABULARY.control("bos"), VOCABULARY.control("boi")]
    assert layout.constrain(begun) == (VOCABULARY.range("size"),)
    assert layout.constrain(begun, headers=[layout.header("image", (2, 3))]) == ((VOCABULARY.range("size")[0] + 1, 1),)


def test_the_engine_writes_blocks_and_documents_of_it():
    engine = engine_of()
    layout, begin = engine.layout, VOCABULARY.control("bos")
    prompts = [torch.tensor([begin, *text, *layout.header("image", (2, 3))]) for text in ([], [1, 2])]
    codes = engine.generate_codes(prompts, grid=(2, 3), seed=1)
    assert torch.equal(engine.generate_codes(prompts, grid=(2, 3), seed=1, window=4), codes)
    with pytest.raises(ValueError, match="announces image"):
        engine.generate_codes(prompts, grid=(3, 2))
    with pytest.raises(ValueError, match="does not end in a header"):
        engine.generate_codes([prompts[0][:-1]], grid=(2, 3))
    (first, *_) = engine.generate(prompts[0], max_text_tokens=4, max_blocks=2, seed=1)
    assert isinstance(first, CodeSegment) and first.codes.shape == (2, 3)
    with pytest.raises(ValueError, match="within a header or a block"):
        engine.generate(prompts[0][:-1])
    for seed in range(6):
        written = list(engine.generate([begin, 3], max_text_tokens=12, max_blocks=2, seed=seed))
        ids = torch.cat([torch.tensor([begin, 3]), *(layout.build([one], add_special=False).ids for one in written)])
        assert len(layout.parse(ids)) >= len(written)


def test_a_cut_header_is_refused_with_its_place():
    with pytest.raises(ValueError, match="begins at position 1 has no complete header"):
        layout_of().parse([VOCABULARY.control("bos"), VOCABULARY.control("boi"), VOCABULARY.range("size")[0]])


def test_a_control_that_the_layout_needs_is_named_with_the_layout():
    with pytest.raises(ValueError, match=r"'emu3' needs the controls \['eof', 'image'\]"):
        Emu3Layout(VOCABULARY)


@pytest.mark.parametrize("kind", LAYOUTS.values())
def test_our_own_layouts_number_their_controls_as_ever(kind):
    assert kind.controls == CONTROLS == ("pad", "bos", "eos", "eol", "eof", "image", "boi", "eoi")
    assert Vocabulary.build(300, {"vision": 512}, kind.controls).fingerprint == "16499bc41a5f239a"
