"""Reading token shards, a document at a time in shuffled order, beside plain memory maps and Arrow; and what their checksums cost.

OMP_WAIT_POLICY=PASSIVE python benchmarks/data_shards.py

Every contender reads the same documents (ids below 33,076 in 16 bits, loss weights of 0, 0.5 and 1) from files that are in the system's
cache. `ids alone` is the floor: a slice of a NumPy memory map as int64, without weights, tensors or checks. The last case reads each block
for the first time in a process: opening the folder, mapping the files and checking every mebibyte are part of it; `checked before` is the
same without the checks. Rates are those of processor time, which a busy neighbour stretches least.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from harness import Contender, Row, measure, report

from emu.data.shards import TokenizedDocument, TokenShards, write_manifest, write_shard
from emu.documents import TokenDocument
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(300, {"vision": 32768})
TOKENS = 1 << 20
"""Of each case with documents of one length."""


def write(folder: Path, length: int, tokens: int) -> list[TokenDocument]:
    """A folder of documents of one length."""
    generator = torch.Generator().manual_seed(length)
    documents = []
    for _ in range(tokens // length):
        ids = torch.randint(0, VOCABULARY.size, (length,), generator=generator)
        documents.append(TokenDocument(ids, 0.5 * torch.randint(0, 3, (length,), generator=generator)))
    write_shard(folder, 0, [TokenizedDocument(document) for document in documents], VOCABULARY, {})
    write_manifest(folder, 1, VOCABULARY, {"vocabulary": VOCABULARY.fingerprint})
    return documents


def read_maps(folder: Path, length: int) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """The same tensors from plain memory maps."""
    ids = np.load(folder / "shard-00000.ids.npy", mmap_mode="r")
    codes = np.load(folder / "shard-00000.weights.npy", mmap_mode="r")
    table = np.array([0.0, 0.5, 1.0], np.float32)

    def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start, stop = index * length, (index + 1) * length
        return torch.from_numpy(ids[start:stop].astype(np.int64)), torch.from_numpy(table[codes[start:stop]])

    return read


def arrow(folder: Path, documents: list[TokenDocument]) -> datasets.Dataset:
    """The same documents as an Arrow file of the datasets library."""
    columns = {
        "ids": [document.ids.to(torch.uint16).numpy() for document in documents],
        "weights": [document.weights.numpy() for document in documents],
    }
    kinds = {
        "ids": datasets.Sequence(datasets.Value("uint16")),
        "weights": datasets.Sequence(datasets.Value("float32")),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def run_length(length: int, rounds: int) -> list[Row]:
    """Documents of one length."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        documents = write(Path(place) / "shards", length, TOKENS)
        order = list(range(len(documents)))
        random.Random(0).shuffle(order)
        shards, maps = TokenShards(Path(place) / "shards"), read_maps(Path(place) / "shards", length)
        table = arrow(Path(place) / "arrow", documents)
        as_torch, as_numpy = table.with_format("torch"), table.with_format("numpy")
        floor = np.load(Path(place) / "shards" / "shard-00000.ids.npy", mmap_mode="r")
        contenders = [
            Contender("emu", lambda: [shards.document(index, 0) for index in order]),
            Contender("memory maps", lambda: [maps(index) for index in order]),
            Contender("Arrow, as torch", lambda: [as_torch[index] for index in order]),
            Contender("Arrow, as numpy", lambda: [as_numpy[index] for index in order]),
            Contender(
                "ids alone",
                lambda: [floor[index * length : (index + 1) * length].astype(np.int64) for index in order],
                floor=True,
            ),
        ]
        return measure("data_shards", f"{len(order)} documents of {length} tokens", contenders, "cpu", rounds)


def run_checks(rounds: int) -> list[Row]:
    """Every block for the first time: 64 MiB of ids and 32 MiB of weights."""
    with tempfile.TemporaryDirectory() as place:
        documents = write(Path(place) / "shards", 4096, 32 << 20)
        order = list(range(len(documents)))
        random.Random(0).shuffle(order)

        def read(checked: bool) -> None:
            shards = TokenShards(Path(place) / "shards")
            if checked:
                for array in (shards.shard(0).ids, shards.shard(0).weights):
                    array._unchecked.clear()
            for index in order:
                shards.document(index, 0)

        contenders = [
            Contender("emu", lambda: read(False)),
            Contender("checked before", lambda: read(True), floor=True),
        ]
        return measure("data_shards", "96 MiB read for the first time", contenders, "cpu", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows = [row for length in (64, 256, 1024, 4096) for row in run_length(length, arguments.rounds)]
    rows += run_checks(arguments.rounds)
    report(rows, "data_shards_cpu")
    for row in rows:
        if row.case.startswith("96"):
            continue
        print(f"{row.case}: {row.contender:16s} {TOKENS / row.cpu_ms / 1e3:8.1f} million tokens a second")


if __name__ == "__main__":
    main()
