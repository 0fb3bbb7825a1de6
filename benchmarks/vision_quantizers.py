"""Every quantizer on the same pictures: PSNR, codebook use and perplexity over training, on CPU.

    python benchmarks/vision_quantizers.py --steps 1000 --quantizers vq
    python benchmarks/vision_quantizers.py --steps 400

Pictures are 32x32: one or two anti-aliased circles, squares or triangles in 8 colours on 4 backgrounds; the grid is 8x8 codes
of the "small" preset. Writes a row per measurement to benchmarks/results/vision_quantizers.csv, and a plot where matplotlib
is installed.
"""

import argparse
import csv
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from emu_tokenizers import VisionTokenizerConfig
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.training.shapes_data import draw_shapes
from emu_tokenizers.training.tokenizer_module import OPTIMIZER, TokenizerModule

RESULTS = Path(__file__).resolve().parent / "results" / "vision_quantizers.csv"
OPTIONS: dict[str, dict] = {
    "vq": {},
    "residual": {"num_codebooks": 2},
    "multi": {"num_codebooks": 2},
    "simvq": {},
    "ibq": {},
    "fsq": {"levels": (8, 8, 8)},
    "lfq": {},
    "bsq": {},
}


class Batches:
    """Batches of 16 pictures, a function of their number."""

    def __init__(self, pictures: torch.Tensor, length: int) -> None:
        self.pictures, self.length = pictures, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.length):
            chosen = np.random.default_rng(index).integers(0, len(self.pictures), 16)
            yield self.pictures[torch.from_numpy(chosen)]


class Curve(Callback):
    """Measures the tokenizer on held-out pictures every so many steps, outside the clock."""

    def __init__(self, name: str, pictures: torch.Tensor, every: int) -> None:
        self.name, self.pictures, self.every = name, pictures, every
        self.rows: list[dict] = []
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, module: TokenizerModule, *_: object) -> None:  # type: ignore[override]
        if trainer.global_step % self.every and trainer.global_step != trainer.max_steps:
            return
        elapsed, before = time.process_time() - self.start, time.process_time()
        tokenizer = module.tokenizer.eval()
        codes = tokenizer.encode(self.pictures)
        quality = psnr(tokenizer.decode(codes), self.pictures).mean().item()
        module.model.train()
        counter = CodeCounter(tokenizer.codebook_sizes)
        counter.add(codes)
        use = counter.measure()
        row = {"quantizer": self.name, "step": trainer.global_step, "cpu_seconds": round(elapsed, 1)}
        row |= {"psnr": round(quality, 2), "use": round(use.use, 4), "perplexity": round(use.perplexity, 1)}
        print(row, flush=True)
        self.rows.append(row)
        self.start += time.process_time() - before


def train(name: str, steps: int, pictures: torch.Tensor, held_out: torch.Tensor) -> list[dict]:
    """The curve of one quantizer."""
    torch.manual_seed(0)
    size = 512
    config = VisionTokenizerConfig.preset("small", quantizer=name, quantizer_options=OPTIONS[name], codebook_size=size)
    module = TokenizerModule(
        config, optimizer=replace(OPTIMIZER, name="muon", lr=2e-3, matrix_lr=2e-2), average_decay=0.98
    )
    curve = Curve(name, held_out, max(steps // 5, 1))
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[curve],
    )  # fmt: skip
    trainer.fit(module, Batches(pictures, steps))
    return curve.rows


def plot(rows: list[dict]) -> None:
    """PSNR and perplexity over steps, one line per quantizer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for name in dict.fromkeys(row["quantizer"] for row in rows):
        own = [row for row in rows if row["quantizer"] == name]
        for axis, field in zip(axes, ("psnr", "perplexity"), strict=True):
            axis.plot([row["step"] for row in own], [row[field] for row in own], label=name)
            axis.set(xlabel="step", ylabel=field)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


def main() -> None:
    """Trains the chosen quantizers one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quantizers", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pictures, held_out = draw_shapes(6000, seed=0), draw_shapes(512, seed=1)
    rows = [row for name in args.quantizers for row in train(name, args.steps, pictures, held_out)]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows)


if __name__ == "__main__":
    main()
