"""Blocks with hidden cells: any mask of any grid is written and read back, and what is no such block is an error that names its place."""

from __future__ import annotations

import pytest
import torch

from emu import Emu3Layout, Emu35Layout, Vocabulary
from emu.documents import CodeSegment, TextSegment
from emu.layouts import Cursor
from emu.vocabulary import CONTROLS, HOLE

PLAIN = Vocabulary.build(256, {"vision": 64})
VOCABULARIES = {
    "one codebook": Vocabulary.build(256, {"vision": 64}, (*CONTROLS, HOLE)),
    "three codebooks": Vocabulary.build(256, {f"vision.{i}": 16 for i in range(3)}, (*CONTROLS, HOLE)),
}
EMU3 = Vocabulary(
    184622,
    {"vision": (151854, 32768)},
    {"pad": 151643, "bos": 151849, "eos": 151850, "eol": 151846, "eof": 151847}
    | {"image": 151851, "boi": 151852, "eoi": 151853},
)
LAYOUTS = [Emu3Layout, Emu35Layout]


class Bytes:
    """A text tokenizer of one id per byte."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def layout_of(kind=Emu3Layout, vocabulary="one codebook"):
    return kind(VOCABULARIES[vocabulary], Bytes())


def random_block(vocabulary, seed):
    """A picture or a clip of any grid with any cells hidden."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.randint(1, 5, (2 + seed % 2,), generator=draw).tolist()
    count, last = (64, []) if vocabulary == "one codebook" else (16, [3])
    codes = torch.randint(0, count, [*grid, *last], generator=draw)
    hidden = torch.rand(grid, generator=draw) < torch.rand((), generator=draw)
    hidden.view(-1)[int(torch.randint(0, hidden.numel(), (), generator=draw))] = True
    meta = {"frames": 4 * grid[0], "fps": 8} if len(grid) == 3 else {}
    return CodeSegment(("image", "video")[seed % 2], codes, meta, hidden=hidden)


def same(left, right):
    return (
        left.modality == right.modality
        and torch.equal(left.codes, right.codes)
        and torch.equal(left.hidden, right.hidden)
        and dict(left.meta) == dict(right.meta)
    )


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_any_mask_of_any_grid_is_read_back_as_it_was_written(kind, vocabulary):
    layout = layout_of(kind, vocabulary)
    for seed in range(40):
        block, caption = random_block(vocabulary, seed), TextSegment(torch.tensor([1, 2, 3]))
        document = layout.build([caption, block, caption])
        before, found, after = layout.parse(document.ids)
        assert same(found, block) and torch.equal(before.ids, after.ids)
        assert layout.spans(document.ids)[1] == document.spans[1]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_cursor_allows_every_token_and_asks_for_the_hidden_codes_one_by_one(kind, vocabulary):
    layout = layout_of(kind, vocabulary)
    for seed in range(15):
        block = random_block(vocabulary, seed)
        cursor, ids = Cursor(layout), layout.build([block]).ids.tolist()
        for index in ids[:-2]:
            cursor.advance(index)
            assert all(first != layout.hole for first, _ in cursor.allowed()) or len(block.codes.shape) > 2
        eoi = layout.vocabulary.control("eoi")
        assert cursor.is_within_block and cursor.allowed() == (
            (eoi, 1),
        )  # exactly as many codes as holes, then the end
        for index in ids[-2:]:
            cursor.advance(index)
        assert cursor.ended


def test_the_form_of_a_block_with_hidden_cells():
    layout = layout_of()
    codes = torch.arange(4).reshape(2, 2)
    hidden = torch.tensor([[False, True], [True, False]])
    header = layout.header("image", (2, 2))
    document = layout.build([CodeSegment("image", codes, hidden=hidden, weight=0.5)], add_special=False)
    first = layout.vocabulary.range("vision")[0]
    eol, eof, eoi = (layout.vocabulary.control(name) for name in ("eol", "eof", "eoi"))
    shown = [first, layout.hole, eol, layout.hole, first + 3, eol, eof, eoi]
    assert document.ids.tolist() == [*header, *shown, first + 1, first + 2, eoi]
    # Codes weigh what they weigh elsewhere; holes, and what the grammar forces, nothing.
    assert document.weights[len(header) :].tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0, 0.5, 0.5, 0]


def test_every_cut_and_every_wrong_token_is_an_error_that_names_its_place():
    layout = layout_of()
    block = CodeSegment("image", torch.arange(6).reshape(2, 3), hidden=torch.tensor([[True, False, True], [True] * 3]))
    ids = layout.build([block], add_special=False).ids
    header = len(layout.header("image", (2, 3)))
    for length in range(header + 1, len(ids)):
        with pytest.raises(ValueError, match="block that begins at position 0: .*(ends after|tokens)"):
            layout.parse(ids[:length])
    wrong = layout.vocabulary.control("boi")
    for place in range(header, len(ids)):
        changed = ids.clone()
        changed[place] = wrong
        with pytest.raises(ValueError, match="position"):
            layout.parse(changed)
    more = ids.clone()
    more[header + 1] = layout.hole  # one hole more than codes follow
    with pytest.raises(ValueError, match="in the hidden codes, which begin at position 10 after the header"):
        layout.parse(more)
    misplaced = ids.clone()
    misplaced[header + 3] = layout.hole  # where a row ends
    with pytest.raises(ValueError, match="position 3 of a block of shape"):
        layout.parse(misplaced)


def test_a_cell_is_hidden_with_all_of_its_codes():
    layout = layout_of(vocabulary="three codebooks")
    block = random_block("three codebooks", 0)
    ids = layout.build([CodeSegment("image", block.codes, hidden=torch.ones_like(block.hidden))]).ids
    place = int((ids == layout.hole).nonzero()[0])
    ids[place] = layout.vocabulary.range("vision.0")[0]
    with pytest.raises(ValueError, match="position 0 of a block of shape .* some codes are holes"):
        layout.parse(ids)
    cursor = Cursor(layout)
    with pytest.raises(ValueError, match="HOLE .* cannot stand here"):
        for index in ids.tolist():
            cursor.advance(index)


@pytest.mark.parametrize(
    "hidden, message",
    [
        (torch.zeros(2, 3, dtype=torch.bool), "no cell is hidden"),
        (torch.ones(3, 2, dtype=torch.bool), r"expected bool \(2, 3\)"),
        (torch.ones(2, 3), "expected bool"),
    ],
)
def test_masks_that_fit_no_block(hidden, message):
    with pytest.raises(ValueError, match=message):
        layout_of().build([CodeSegment("image", torch.zeros(2, 3, dtype=torch.int64), hidden=hidden)])


def test_a_vocabulary_without_holes_has_no_such_blocks_and_may_name_a_free_id():
    block = random_block("one codebook", 0)
    with pytest.raises(ValueError, match=r"need the control 'hole'.*with_control\('hole', id\)"):
        Emu3Layout(PLAIN, Bytes()).build([block])
    spare = EMU3.with_control(HOLE, 151700)
    layout = Emu3Layout(spare, Bytes())
    assert same(layout.parse(layout.build([block]).ids)[0], block)
    for taken in (151846, 151854, 184622, 12):
        with pytest.raises(ValueError, match="share id|outside"):
            EMU3.with_control(HOLE, taken)
    with pytest.raises(ValueError, match="has the control 'hole' already"):
        spare.with_control(HOLE, 151701)


def test_holes_change_the_fingerprint_of_the_vocabularies_that_have_them_alone():
    assert EMU3.fingerprint == "67118f35b0524138"
    assert PLAIN.fingerprint != VOCABULARIES["one codebook"].fingerprint
    assert Vocabulary.from_dict(VOCABULARIES["one codebook"].to_dict()) == VOCABULARIES["one codebook"]
