"""Reading token shards, a document at a time in shuffled order, beside plain memory maps and Arrow; what their checksums cost; and what
the next batch costs beside a step.

OMP_WAIT_POLICY=PASSIVE python benchmarks/data_loading.py
OMP_WAIT_POLICY=PASSIVE python benchmarks/data_loading.py --steps     # the share of next(loader) in the steps of recipes alone

Every contender reads the same documents (ids below 33,076 in 16 bits, loss weights of 0, 0.5 and 1; log-normal lengths, mean 725) from
files that are in the system's cache, and drops each before it reads the next, as training does. `ids alone` is the floor: a slice of a
NumPy memory map as int64, without weights, tensors or checks. `first time` reads each block for the first time in a process: opening the
folder, mapping the files and checking every mebibyte are part of it; `checked before` is the same without the checks. Rates are those of
processor time, which a busy neighbour stretches least.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from harness import Contender, Row, measure, report
from step_times import NEXT, STEP, ProcessorTime

from emu.data.shards import TokenizedDocument, TokenShards, write_manifest, write_shard
from emu.documents import TokenDocument
from emu.training.cli import fit
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(300, {"vision": 32768})
MEAN = 725
DOCUMENTS = 8192
SHARD = 4096
"""Documents of a shard, as `emu tokenize` writes them."""
STEPS = 15


def make_documents(count: int, mean: int) -> list[TokenDocument]:
    """Documents of log-normal lengths and random ids."""
    draw = np.random.default_rng(mean)
    lengths = np.clip(draw.lognormal(np.log(mean) - 0.32, 0.8, count), 2, 32 * mean).astype(int)
    documents = []
    for length in lengths.tolist():
        ids = torch.from_numpy(draw.integers(0, VOCABULARY.size, length))
        documents.append(TokenDocument(ids, torch.from_numpy(draw.integers(0, 3, length).astype(np.float32) / 2)))
    return documents


def write(folder: Path, documents: list[TokenDocument]) -> None:
    """A folder of token shards."""
    starts = range(0, len(documents), SHARD)
    for number, start in enumerate(starts):
        items = [TokenizedDocument(document) for document in documents[start : start + SHARD]]
        write_shard(folder, number, items, VOCABULARY, {})
    write_manifest(folder, len(starts), VOCABULARY, {"vocabulary": VOCABULARY.fingerprint})


def read_maps(folder: Path, shards: TokenShards, with_weights: bool) -> Callable[[int], Any]:
    """The same tensors from plain memory maps; or the ids alone as an array."""
    names = range(len(shards.manifest.shards))
    ids = [np.load(folder / f"shard-{number:05d}.ids.npy", mmap_mode="r") for number in names]
    codes = [np.load(folder / f"shard-{number:05d}.weights.npy", mmap_mode="r") for number in names]
    starts = [shard.starts.tolist() for shard in shards.open_shards()]
    table = np.array([0.0, 0.5, 1.0], np.float32)

    def read(index: int) -> Any:
        number, place = divmod(index, SHARD)
        part = slice(starts[number][place], starts[number][place + 1])
        values = ids[number][part].astype(np.int64)
        return (torch.from_numpy(values), torch.from_numpy(table[codes[number][part]])) if with_weights else values

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


def reader(order: list[int], read: Callable[[int], Any]) -> Callable[[], None]:
    """Reads all documents in an order."""

    def run() -> None:
        for index in order:
            read(index)

    return run


def run_lengths(mean: int, count: int, rounds: int) -> tuple[list[Row], int]:
    """Documents of one mean length, and the tokens of them all."""
    datasets.disable_progress_bars()
    documents = make_documents(count, mean)
    order = list(range(count))
    random.Random(0).shuffle(order)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        write(folder, documents)
        shards = TokenShards(folder)
        table = arrow(Path(place) / "arrow", documents)
        as_numpy, as_torch = table.with_format("numpy"), table.with_format("torch")
        contenders = [
            Contender("emu", reader(order, lambda index: shards.document(index, 0))),
            Contender("memory maps", reader(order, read_maps(folder, shards, True))),
            Contender("Arrow, as numpy", reader(order, lambda index: as_numpy[index])),
            Contender("Arrow, as torch", reader(order, lambda index: as_torch[index])),
            Contender("ids alone", reader(order, read_maps(folder, shards, False)), floor=True),
        ]
        rows = measure("data_loading", f"{count} documents of mean {mean}", contenders, "cpu", rounds)
    return rows, sum(map(len, documents))


def run_checks(rounds: int) -> list[Row]:
    """Every block for the first time."""
    documents = make_documents(DOCUMENTS, MEAN)
    order = list(range(len(documents)))
    random.Random(0).shuffle(order)
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "shards", documents)

        def read(checked: bool) -> None:
            shards = TokenShards(Path(place) / "shards")
            if checked:
                for shard in shards.open_shards():
                    shard.ids._unchecked.clear()
                    shard.weights._unchecked.clear()
            reader(order, lambda index: shards.document(index, 0))()

        contenders = [
            Contender("emu", lambda: read(False)),
            Contender("checked before", lambda: read(True), floor=True),
        ]
        return measure("data_loading", "first time", contenders, "cpu", rounds)


def shards_recipe(folder: Path) -> Path:
    """The digits' transformer over token shards, in steps of the digits' size."""
    write(folder / "shards", make_documents(DOCUMENTS, 40))
    recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "digits.yaml").read_text())
    options = {"sources": {"mine": str(folder / "shards")}, "row_length": 208, "rows_per_step": 10}
    recipe["data"] = {
        "class_path": "emu.data.sharded.ShardData",
        "init_args": {**options, "long_documents": "drop"},
    }
    (folder / "shards.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "shards.yaml"


def measure_steps(recipe: str | Path, workers: int | None = None) -> None:
    """Print the share of `next(loader)` in the steps of a recipe, medians without the first ones.

    Args:
        recipe: file or name of one.
        workers: processes that draw ahead; None leaves it to the recipe.
    """
    ProcessorTime.measured.clear()
    with tempfile.TemporaryDirectory() as place:
        words = {
            "--export": "null",
            "--trainer.max_steps": STEPS,
            "--trainer.limit_val_batches": 0,
            "--trainer.callbacks": "[]",
            "--trainer.profiler": "step_times.ProcessorTime",
            "--trainer.enable_progress_bar": "false",
            "--trainer.default_root_dir": f"{place}/run",
        }
        if workers is not None:
            words["--data.num_workers"] = workers
        fit(["--config", str(recipe), *(str(word) for pair in words.items() for word in pair)])
    shown = []
    for number, unit in enumerate(("processor", "wall")):
        taken, trained = (statistics.median(x[number] for x in ProcessorTime.measured[k][3:]) for k in (NEXT, STEP))
        shown.append(
            f"{1e3 * taken:.2f} of {1e3 * (taken + trained):.1f} ms {unit} time ({taken / (taken + trained):.2%})"
        )
    ahead = "" if workers is None else f" with {workers} processes that draw ahead"
    print(f"next(loader), {Path(recipe).stem}{ahead}: {', '.join(shown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", nargs="*", help="measure the steps of these recipes alone")
    parser.add_argument("--workers", type=int, nargs="*", help="do so with these numbers of processes that draw ahead")
    arguments = parser.parse_args()
    if arguments.steps is None:
        rows, tokens = run_lengths(MEAN, DOCUMENTS, arguments.rounds)
        times = {row.contender: row.cpu_ms for row in rows}
        rows += run_lengths(64, DOCUMENTS, arguments.rounds)[0] + run_lengths(4096, 1024, arguments.rounds)[0]
        rows += run_checks(arguments.rounds)
        report(rows, "data_loading_cpu")
        for name, spent in times.items():
            print(
                f"{name:16s} {tokens / spent / 1e3:8.1f} million tokens a second, {times['Arrow, as numpy'] / spent:6.1f} times Arrow"
            )
    with tempfile.TemporaryDirectory() as place:
        for recipe in arguments.steps or ["digits", "shapes", shards_recipe(Path(place))]:
            for workers in arguments.workers or [None]:
                measure_steps(recipe, workers)


if __name__ == "__main__":
    main()
