"""The table of ids: every id has one owner, and the table survives JSON."""

import json
import pickle

import pytest

from emu.vocabulary import CONTROLS, Vocabulary

EMU3 = Vocabulary(
    size=184622,
    ranges={"vision": (151854, 32768)},
    controls={
        "pad": 151643, "bos": 151849, "eos": 151850, "eol": 151846, "eof": 151847, "image": 151851, "boi": 151852, "eoi": 151853,
    },
)  # fmt: skip


def test_emu3s_table_leaves_its_151643_byte_pair_ranks_to_text():
    assert EMU3.text == (0, 151643)
    assert EMU3.range("vision") == (151854, 32768)


def test_a_built_vocabulary_is_text_then_controls_then_codebooks_without_gaps():
    vocabulary = Vocabulary.build(300, {"vision": 512, "boxes": 32})
    owned = [vocabulary.text, *((index, 1) for index in vocabulary.controls.values()), *vocabulary.ranges.values()]
    ids = [index for first, count in owned for index in range(first, first + count)]
    assert sorted(ids) == list(range(vocabulary.size))


def test_json_gives_the_same_table_and_fingerprint():
    again = Vocabulary.from_dict(json.loads(json.dumps(EMU3.to_dict())))
    assert again == EMU3 and again.fingerprint == EMU3.fingerprint


def test_fingerprints_tell_tables_apart():
    assert Vocabulary.build(300, {"vision": 512}).fingerprint != Vocabulary.build(300, {"vision": 256}).fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ranges": {"vision": (8, 4)}}, "share id 8"),
        ({"ranges": {"vision": (20, 100)}}, "outside a vocabulary"),
        ({"controls": {"pad": 8}}, "without the controls"),
        ({"ranges": {"vision": (16, 0)}}, "empty"),
        ({"text": (0, 9)}, "share id 8"),
    ],
)
def test_impossible_tables_are_refused_by_name(change, message):
    table = {"size": 32, "ranges": {"vision": (16, 4)}, "controls": {name: 8 + i for i, name in enumerate(CONTROLS)}}
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{**table, **change})


def test_a_table_goes_to_other_processes_and_into_sets():
    assert pickle.loads(pickle.dumps(EMU3)) == EMU3 and len({EMU3, pickle.loads(pickle.dumps(EMU3))}) == 1


def test_a_missing_codebook_is_named():
    with pytest.raises(ValueError, match="no codebook 'audio'"):
        EMU3.range("audio")


def test_a_table_with_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="fields"):
        Vocabulary.from_dict({**EMU3.to_dict(), "extra": 1})
