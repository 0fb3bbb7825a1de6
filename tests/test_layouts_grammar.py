"""One grammar object builds, parses and constrains: the three always agree."""

import pytest
import torch

from emu import Emu3Layout, Emu35Layout, Vocabulary
from emu.documents import CodeSegment, TextSegment
from emu.layouts import Cursor


class Bytes:
    """A text tokenizer of one id per byte."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


VOCABULARY = Vocabulary.build(256, {"vision": 64})
LAYOUTS = [Emu3Layout, Emu35Layout]


def layout_of(kind):
    return kind(VOCABULARY, Bytes())


def random_segments(seed):
    draw = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=draw))

    segments = []
    for _ in range(number(0, 5)):
        kind = number(0, 3)
        if kind == 0 and not (segments and isinstance(segments[-1], TextSegment)):
            segments.append(TextSegment(torch.randint(0, 256, (number(1, 9),), generator=draw)))
        elif kind == 1:
            codes = torch.randint(0, 64, (number(1, 5), number(1, 5)), generator=draw)
            segments.append(CodeSegment("image", codes))
        elif kind == 2:
            codes = torch.randint(0, 64, (number(1, 4), number(1, 4), number(1, 4)), generator=draw)
            segments.append(CodeSegment("video", codes, {"frames": number(1, 17), "fps": (8, 24, 29.97)[number(0, 3)]}))
    return segments


def same(left, right):
    if isinstance(left, TextSegment):
        return torch.equal(left.ids, right.ids)
    return (
        left.modality == right.modality and torch.equal(left.codes, right.codes) and dict(left.meta) == dict(right.meta)
    )


@pytest.mark.parametrize("kind", LAYOUTS)
def test_parse_inverts_build(kind):
    layout = layout_of(kind)
    for seed in range(60):
        segments = random_segments(seed)
        for special in (True, False):
            read = layout.parse(layout.build(segments, add_special=special).ids)
            assert len(read) == len(segments) and all(map(same, segments, read))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_cursor_allows_every_token_that_build_writes(kind):
    layout = layout_of(kind)
    for seed in range(40):
        cursor = Cursor(layout)
        for index in layout.build(random_segments(seed)).ids.tolist():
            cursor.advance(index)
        assert cursor.ended


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_walk_along_allowed_tokens_parses(kind):
    layout = layout_of(kind)
    headers = [
        layout.header("image", (2, 3)),
        layout.header("image", (12, 3)),
        layout.header("video", (2, 2, 1), {"frames": 7, "fps": 8}),
    ]
    for seed in range(40):
        draw, cursor, ids = torch.Generator().manual_seed(seed), Cursor(layout, headers), []
        while not cursor.ended:
            ranges = cursor.allowed()
            first, count = ranges[int(torch.randint(len(ranges), (), generator=draw))]
            ids.append(first + int(torch.randint(count, (), generator=draw)))
            cursor.advance(ids[-1])
        layout.parse(ids)


def test_emu3_ends_every_row_and_the_frame_and_emu35_joins_rows():
    controls, (first, _) = VOCABULARY.controls, VOCABULARY.range("vision")
    codes = torch.arange(4).reshape(2, 2)
    tail = {kind: layout_of(kind).block("image", (2, 2)).fill(codes).tolist() for kind in LAYOUTS}
    eol, eof, eoi = controls["eol"], controls["eof"], controls["eoi"]
    assert tail[Emu3Layout] == [first, first + 1, eol, first + 2, first + 3, eol, eof, eoi]
    assert tail[Emu35Layout] == [first, first + 1, eol, first + 2, first + 3, eoi]


@pytest.mark.parametrize(
    "grid, tokens", [((90, 90), 8193), ((78, 104), 8193), ((68, 120), 8231), ((64, 64), 4163), ((59, 137), 8145)]
)
def test_token_counts_of_emu3(grid, tokens):
    """Tokens after the image mark with EOI and EOS, as the original generates them (`processing_emu3.py` of baaivision/Emu3)."""
    assert len(layout_of(Emu3Layout).block("image", grid)) + 1 == tokens


def test_a_clip_has_one_frame_mark_per_latent_frame():
    """30 latent frames of 64x64: 30 x (64 x 65 + 1) tokens and EOI."""
    assert len(layout_of(Emu3Layout).block("video", (30, 64, 64))) == 124830 + 1


def test_forced_tokens_weigh_nothing_and_the_rest_what_its_segment_weighs():
    layout = layout_of(Emu3Layout)
    text, codes = (
        TextSegment(torch.tensor([1, 2]), weight=0.25),
        CodeSegment("image", torch.zeros(2, 2, dtype=torch.long), weight=0.5),
    )
    document = layout.build([text, codes])
    controls = layout.vocabulary.controls
    forced = torch.tensor([controls[name] for name in ("bos", "eol", "eof", "eoi")])
    assert (document.weights[torch.isin(document.ids, forced)] == 0).all()
    assert document.weights[document.ids < 3].tolist() == [0.25, 0.25]
    assert (document.weights[document.ids >= layout.vocabulary.range("vision")[0]] == 0.5).all()


def test_text_never_becomes_a_control():
    layout = layout_of(Emu3Layout)
    ids = layout.encode_text("<|image start|>4*4<|image token|><|visual token 000000|>")
    first, count = layout.vocabulary.text
    assert all(first <= index < first + count for index in ids)
    with pytest.raises(ValueError, match="outside the text range"):
        layout.build([TextSegment(torch.tensor([layout.vocabulary.controls["boi"]]))])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda ids: ids[:-4], "ends after"),
        (lambda ids: torch.cat([ids[:9], ids[8:]]), "expected"),
        (lambda ids: ids[ids != VOCABULARY.controls["image"]], "no image mark"),
        (lambda ids: torch.cat([ids[:1], ids[5:]]), "where text or a block should begin"),
        (lambda ids: torch.cat([ids[:2], torch.tensor([ord("x")]), ids[2:]]), "writes the header"),
    ],
)
def test_broken_sequences_are_refused_with_their_place(spoil, message):
    layout = layout_of(Emu3Layout)
    ids = layout.build([CodeSegment("image", torch.zeros(2, 2, dtype=torch.long))]).ids
    with pytest.raises(ValueError, match=message):
        layout.parse(spoil(ids))


def test_wrong_codes_are_refused():
    layout = layout_of(Emu3Layout)
    for codes, message in [
        (torch.full((2, 2), 64), "outside its codebook"),
        (torch.zeros(2, dtype=torch.long), "2 axes"),
    ]:
        with pytest.raises(ValueError, match=message):
            layout.build([CodeSegment("image", codes)])


def test_several_codebooks_follow_each_other_in_their_own_ranges():
    layout = Emu3Layout(Vocabulary.build(256, {"vision.0": 8, "vision.1": 4}), Bytes())
    codes = torch.stack([torch.randint(0, 8, (2, 3)), torch.randint(0, 4, (2, 3))], -1)
    [segment] = layout.parse(layout.build([CodeSegment("image", codes)]).ids)
    assert torch.equal(segment.codes, codes)


def test_a_layout_without_text_needs_finished_headers():
    layout = Emu3Layout(VOCABULARY)
    assert len(layout.block("image", (2, 2))) == 8
    with pytest.raises(ValueError, match="without a text tokenizer"):
        layout.header("image", (2, 2))


def test_a_header_outside_the_list_cannot_be_opened():
    layout = layout_of(Emu3Layout)
    bos, boi = layout.vocabulary.controls["bos"], layout.vocabulary.controls["boi"]
    assert layout.constrain([bos, boi], headers=[layout.header("image", (4, 4))]) == ((ord("4"), 1),)
    assert (boi, 1) not in layout.constrain([bos], headers=[])
