"""Whatever happens to the files of token shards, training reads what was written or is told which file is damaged."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from emu.data.shards import DamagedShards, TokenizedDocument, TokenShards, read_entry, write_manifest
from emu.documents import TokenDocument
from tests.shards_toys import VOCABULARY, make_album, same, write

DATA = Path(__file__).parent / "data"


def read_all(shards):
    """Every document, with and without its caption."""
    return [shards.document(index, key) for index in range(len(shards)) for key in range(3)]


class Damage:
    """A folder that is damaged and restored again and again.

    Args:
        folder: a copy that may be changed.
        seed: of the damage.
    """

    def __init__(self, folder, seed=0):
        self.folder, self.random = folder, random.Random(seed)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.healthy = read_all(TokenShards(folder, 0.5))
        self.outcomes = Counter()

    def once(self):
        """Damage the folder, read it, and count what came of it under (kind of damage, outcome)."""
        kinds = [self.flip, self.overwrite, self.truncate, self.append, self.zero, self.swap, self.edit, self.remove]
        kind = self.random.choice(kinds)
        names = kind()
        self.outcomes[kind.__name__, self.outcome(names)] += 1
        for name in names:
            (self.folder / name).write_bytes(self.files[name])

    def outcome(self, names):
        place = "opening"
        try:
            shards = TokenShards(self.folder, 0.5)
            place = "reading"
            found = read_all(shards)
        except (ValueError, FileNotFoundError) as error:
            return f"told at {place}" if any(name in str(error) for name in names) else "told without the file"
        except Exception as error:  # what the test is about: damage must never come out as an error of the inside
            return f"raw {type(error).__name__}"
        equal = len(found) == len(self.healthy) and all(map(same, found, self.healthy))
        return "unchanged" if equal else "silently other"

    def flip(self):
        return self._change(
            lambda data, at: data[:at] + bytes([data[at] ^ 1 << self.random.randrange(8)]) + data[at + 1 :]
        )

    def overwrite(self):
        noise = self.random.randbytes(self.random.randint(1, 16))
        return self._change(lambda data, at: (data[:at] + noise + data[at + len(noise) :])[: len(data)])

    def truncate(self):
        return self._change(lambda data, at: data[:at])

    def append(self):
        return self._change(lambda data, at: data + self.random.randbytes(1 + at % 32))

    def zero(self):
        return self._change(lambda data, at: data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :])

    def swap(self):
        one, two = self.random.sample(list(self.files), 2)
        (self.folder / one).write_bytes(self.files[two])
        (self.folder / two).write_bytes(self.files[one])
        return [one, two]

    def remove(self):
        name = self.random.choice(list(self.files))
        (self.folder / name).unlink()
        return [name]

    def edit(self):
        """Another value, a key less or another type somewhere in a JSON file that stays valid."""
        name = self.random.choice([name for name in self.files if name.endswith(".json")])
        table = json.loads(self.files[name])
        places = list(self._places(table))
        inside, key = self.random.choice(places)
        value = inside[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            choices = [None, 3, [], {}, "word", not value]
        else:
            choices = [value + 1, -value - 1, value / 2, value * 10**6, str(value), None, [value], True]
        inside[key] = self.random.choice(choices)
        if self.random.random() < 0.2:
            del inside[key]
        (self.folder / name).write_text(json.dumps(table))
        return [name]

    def _places(self, table):
        for key in table if isinstance(table, dict) else range(len(table)):
            yield table, key
            if isinstance(table[key], dict | list):
                yield from self._places(table[key])

    def _change(self, change):
        name = self.random.choice(list(self.files))
        data = self.files[name]
        (self.folder / name).write_bytes(change(data, self.random.randrange(len(data))))
        return [name]


def copy(version, folder):
    folder.mkdir()
    for path in (DATA / f"shards-version-{version}").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def damage_often(folder, times, seed):
    damage = Damage(folder, seed)
    for _ in range(times):
        damage.once()
    allowed = {"unchanged", "told at opening", "told at reading"}
    assert {outcome for _, outcome in damage.outcomes} <= allowed, damage.outcomes
    return damage.outcomes


@pytest.mark.parametrize("version", [1, 2])
def test_damage_is_told_with_the_file_and_changes_no_document(version, tmp_path):
    damage_often(copy(version, tmp_path / "shards"), 100, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "times"), [(1, 1000), (2, 10000)])
def test_no_damage_of_very_many_is_silent(version, times, tmp_path):
    outcomes = damage_often(copy(version, tmp_path / "shards"), times, seed=1)
    totals = Counter()
    for (kind, outcome), number in sorted(outcomes.items()):
        totals[outcome] += number
        print(f"version {version}  {kind:10s} {outcome:16s} {number}")
    print(f"version {version}  {dict(totals)}")


def test_blocks_are_checked_when_they_are_first_read(tmp_path):
    ids = torch.arange(3_000_000) % VOCABULARY.size
    documents = [TokenizedDocument(TokenDocument(part, torch.ones(len(part)))) for part in ids.split(500_000)]
    folder = write(tmp_path / "shards", documents)
    path = folder / "shard-00000.ids.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    shards = TokenShards(folder)
    assert all(same(shards.document(i, 0), documents[i].document) for i in range(5))
    with pytest.raises(DamagedShards, match=rf"ids\.npy is damaged: bytes {5 << 20} to {len(data) - 1} do not have"):
        shards.document(5, 0)
    assert same(shards.document(4, 0), documents[4].document)


@pytest.mark.parametrize("version", [1, 2])
def test_verifying_names_every_damaged_file(version, tmp_path):
    folder = copy(version, tmp_path / "shards")
    for name in ("shard-00000.weights.npy", "shard-00002.ids.npy"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 4
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000\.weights\.npy.*; .*shard-00002\.ids\.npy"):
        TokenShards(folder).verify()


def test_a_run_that_goes_on_makes_damaged_shards_anew(tmp_path):
    folder = write(tmp_path / "shards", make_album(), per_shard=3)
    assert read_entry(folder, 1)["documents"] == 3
    for name in ("ids.npy", "spans.npy", "json"):
        path = folder / f"shard-00001.{name}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 2]) + whole[-19:])
        assert read_entry(folder, 1) is None
        path.write_bytes(whole)
    assert read_entry(folder, 1) is not None
    assert read_entry(copy(1, tmp_path / "old"), 0) is None


def test_a_folder_is_not_closed_over_a_shard_that_is_missing(tmp_path):
    folder = write(tmp_path / "shards", make_album(), per_shard=3)
    (folder / "shard-00001.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.json"):
        write_manifest(folder, 3, VOCABULARY, {})


def test_numbers_that_mean_nothing_are_refused_whatever_their_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr("emu.data.shards.writing._check_values", lambda *_: None)
    album = make_album()
    album[3].document.ids[5] = VOCABULARY.size + 7
    shards = TokenShards(write(tmp_path / "shards", album, per_shard=2))
    assert len(shards.document(0, 0)) and len(shards.document(7, 0))
    with pytest.raises(DamagedShards, match=rf"ids\.npy is damaged: it holds {VOCABULARY.size + 7}"):
        shards.document(3, 0)


@pytest.mark.parametrize(("token", "weight"), [(5, float("nan")), (5, -1.0), (5, float("inf"))])
def test_weights_that_mean_nothing_are_never_written(token, weight, tmp_path):
    album = make_album()
    album[1].document.weights[token] = weight
    with pytest.raises(ValueError, match=rf"document 1 of shard 0 has the loss weight {weight}"):
        write(tmp_path / "shards", album)


def test_ids_outside_the_vocabulary_are_never_written(tmp_path):
    album = make_album()
    album[2].document.ids[-1] = VOCABULARY.size
    with pytest.raises(ValueError, match=rf"document 2 of shard 0 has the id {VOCABULARY.size}"):
        write(tmp_path / "shards", album)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, True, 2.0])
def test_a_manifest_of_another_format_version_is_told(version, tmp_path):
    folder = copy(2, tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(ValueError, match=r"manifest\.json (has format|is damaged)"):
        TokenShards(folder)
