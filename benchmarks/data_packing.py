"""How full rows are, and how many documents are left out, on the lengths of a mixture of text, pictures, interleaved documents and clips.

python benchmarks/data_packing.py

Two hundred thousand documents: 40 % text (log-normal, mean 1,015), 35 % pictures of many aspect ratios (mean 613), 15 % interleaved (mean
1,292), 10 % clips of 4 to 16 latent frames of 16x16 codes. What is longer than a row is left out first. Every contender packs the same
documents in the same order: `emu` into blocks of a fixed number of rows as training has them, `steps of 64` as few documents at a time as
one step holds, `next fit` and `first fit, 8 rows` as loaders that stream do. Rows hold whole documents; none is cut.
"""

import argparse
import statistics
import time

import numpy as np

from emu.data.block_mixture import BLOCK_DOCUMENTS, BlockMixture
from emu.data.row_packing import pack_block

DOCUMENTS = 200_000
STEP = 64


class Lengths:
    """A source of which only the lengths are asked for."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths
        self.mean_length, self.max_length = float(lengths.mean()), int(lengths.max())

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths(self) -> np.ndarray:
        """(n,) tokens of each document."""
        return self._lengths

    def token_lengths(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n,) tokens of some documents."""
        return self._lengths[numbers]


def draw_lengths(count: int, seed: int = 0) -> np.ndarray:
    """(count,) int64 tokens of documents of the four kinds."""
    draw = np.random.default_rng(seed)
    text = np.maximum(8, draw.lognormal(np.log(1015) - 0.5, 1.0, count))
    # 14 to 32 codes along each side, a mark after each row of codes, a header and a caption.
    heights, widths = draw.integers(14, 33, count), draw.integers(14, 33, count)
    pictures = heights * (widths + 1) + draw.integers(10, 106, count)
    parts = draw.integers(1, 4, count)
    interleaved = np.maximum(8, draw.lognormal(np.log(380) - 0.32, 0.8, count)) + parts * draw.integers(200, 712, count)
    clips = draw.integers(4, 17, count) * 16 * 16 + draw.integers(30, 102, count)
    kinds = draw.random(count)
    lengths = np.select([kinds < 0.4, kinds < 0.75, kinds < 0.9], [text, pictures, interleaved], clips).astype(np.int64)
    named = {"text": text, "pictures": pictures, "interleaved": interleaved, "clips": clips}
    print("mean tokens:", ", ".join(f"{name} {values.mean():.0f}" for name, values in named.items()))
    return lengths


def row_use_of_next_fit(lengths: np.ndarray, row_length: int, num_open: int) -> float:
    """Share of positions used where only the last few rows may still be filled, each document going into the first that has room."""
    spaces: list[int] = []
    rows = 0
    for length in lengths.tolist():
        for number, space in enumerate(spaces):
            if space >= length:
                spaces[number] -= length
                break
        else:
            rows += 1
            spaces = [*spaces[-(num_open - 1) :], row_length - length] if num_open > 1 else [row_length - length]
    return float(lengths.sum()) / (rows * row_length)


def run(lengths: np.ndarray, row_length: int) -> None:
    """Print what every contender makes of rows of one length."""
    long = lengths > row_length
    tokens = lengths[long].sum() / lengths.sum()
    print(
        f"rows of {row_length}: {long.mean():.2%} of the documents ({tokens:.2%} of the tokens) are longer, left out first"
    )
    lengths = lengths[~long]
    mixture = BlockMixture({"all": Lengths(lengths)}, row_length, STEP)
    blocks = -(-len(lengths) // BLOCK_DOCUMENTS)
    plans, times = [], []
    for block in range(blocks):
        start = time.process_time()
        plans.append(mixture.plan(block))
        times.append(1e3 * (time.process_time() - start))
    uses = [plan.tokens / ((len(plan.starts) - 1) * row_length) for plan in plans]
    left_out = [plan.left_out / BLOCK_DOCUMENTS for plan in plans]
    print(
        f"  emu               {statistics.mean(uses):8.2%} (blocks {min(uses):.2%} to {max(uses):.2%}), left out "
        f"{statistics.mean(left_out):.3%} (at most {max(left_out):.3%} of a block), planned in {statistics.median(times):.0f} ms a block "
        "(processor time)"
    )
    start = time.perf_counter()
    for _ in range(1000):
        mixture.references(plans[0], 7)
    print(f"  a row of a planned block is found in {time.perf_counter() - start:.3f} ms")
    steps = [lengths[first : first + STEP] for first in range(0, 20_000, STEP)]
    rows = sum(int(pack_block(step, row_length).max()) + 1 for step in steps)
    print(f"  steps of {STEP} alone {sum(map(np.sum, steps)) / (rows * row_length):8.2%}")
    for name, num_open in (("next fit", 1), ("first fit, 8 rows", 8)):
        print(f"  {name:17s} {row_use_of_next_fit(lengths[:20_000], row_length, num_open):8.2%}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lengths = draw_lengths(DOCUMENTS)
    for row_length in (2048, 8192):
        run(lengths, row_length)


if __name__ == "__main__":
    main()
