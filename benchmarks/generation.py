"""Speed of the engine beside transformers' documented call for Emu3 image generation, on one CPU thread and random weights.

    python benchmarks/generation.py --device cpu                 A and B, one picture and four at a time
    python benchmarks/generation.py --configs C D --batches 1
    python benchmarks/generation.py --windows 1 2 4 8 16 --repeats 3

A has the vocabulary of the released model and a small body (the head dominates), B and C have the proportions of the released model
(head 10 % of the weights, vision slice 18 % of the vocabulary), D is B with clips of several latent frames, for which transformers
documents no call. The peers are those of `generation_peers.py`: the documented call, and the loop that a competent user writes.
Process CPU seconds are compared, because they do not depend on what else the machine does. Rows go to a CSV in results/.

`--windows` measures several tokens per pass instead. How many of them are right depends on the model, so a small one is trained first on
16 x 16 grids of 64 codes with smooth and noisy regions; tokens per pass on it say nothing about a released checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from generation_peers import (
    SETUPS,
    build_pair,
    competent_reference,
    make_prompts,
    scaled_vocabulary,
    transformers_reference,
)
from torch import Tensor

from emu.generation import Engine
from emu.layouts import Emu3Layout
from emu.modalities import Grid
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary

RESULTS = Path(__file__).parent / "results"


def contenders(name: str, batch: int, grid: Grid, dtype: torch.dtype) -> dict[str, Callable[[bool], Tensor]]:
    """What is timed, the peers first; each takes whether to take the most likely codes, and returns codes."""
    vocabulary = scaled_vocabulary(SETUPS[name].divisor)
    layout = Emu3Layout(vocabulary)
    theirs, ours = (model.to(dtype) for model in build_pair(SETUPS[name], vocabulary))
    prompts, negatives = make_prompts(vocabulary, batch, 32, 1), make_prompts(vocabulary, batch, 56, 2)
    top_k = min(2048, vocabulary.ranges["vision"][1])

    def documented(greedy: bool) -> Tensor:
        options = {"do_sample": False} if greedy else {"do_sample": True, "top_k": top_k}
        return transformers_reference(theirs, vocabulary, prompts, negatives, grid, guidance_scale=3.0, **options)

    def competent(greedy: bool) -> Tensor:
        template = layout.block("image" if len(grid) == 2 else "video", grid)
        options = {"guidance_scale": 3.0, "top_k": top_k, "do_sample": not greedy}
        return competent_reference(theirs, template, prompts, negatives, **options)

    def engine_call(engine: Engine, greedy: bool) -> Tensor:
        return engine.generate_codes(
            prompts, negatives, grid, guidance_scale=3.0, top_k=top_k, temperature=0.0 if greedy else 1.0
        )

    engines = {
        kind: partial(engine_call, Engine(ours, layout, deterministic=kind == "deterministic"))
        for kind in ("engine", "deterministic")
    }
    return ({"transformers": documented} if len(grid) == 2 else {}) | {"competent": competent} | engines


def measure(name: str, batch: int, grid: Grid, repeats: int, dtype: torch.dtype) -> list[dict[str, object]]:
    """One CSV row per contender, timed in turns, each round beginning with another one."""
    calls = contenders(name, batch, grid, dtype)
    greedy = {kind: call(True) for kind, call in calls.items()}  # also warms up
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in calls}
    for number in range(repeats):
        kinds = list(calls)
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            cpu, wall = time.process_time(), time.perf_counter()
            calls[kind](False)
            times[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {kind: statistics.median(cpu for cpu, _ in pairs) for kind, pairs in times.items()}
    first = next(iter(calls))
    tokens = len(
        Emu3Layout(scaled_vocabulary(SETUPS[name].divisor)).block("image" if len(grid) == 2 else "video", grid)
    )
    return [
        {
            "config": name,
            "contender": kind,
            "batch": batch,
            "grid": "x".join(map(str, grid)),
            "dtype": str(dtype).removeprefix("torch."),
            "cpu_s_min": f"{min(cpu for cpu, _ in pairs):.3f}",
            "cpu_s_median": f"{medians[kind]:.3f}",
            "cpu_s_max": f"{max(cpu for cpu, _ in pairs):.3f}",
            "wall_s_median": f"{statistics.median(wall for _, wall in pairs):.3f}",
            "cpu_ms_per_token": f"{1000 * medians[kind] / tokens / batch:.3f}",
            "speedup": f"{medians['transformers'] / medians[kind]:.2f}" if "transformers" in medians else "",
            "against_competent": f"{medians['competent'] / medians[kind]:.2f}",
            "greedy_codes_equal": bool(torch.equal(greedy[kind], greedy[first])),
        }
        for kind, pairs in times.items()
    ]


def smooth_grids(count: int, generator: torch.Generator) -> Tensor:
    """(count, 16, 16) codes below 64: blurred noise, with a little noise on top."""
    field = torch.randn(count, 1, 22, 22, generator=generator)
    blurred = F.avg_pool2d(field, 7, 1)[:, 0] * 7  # unit variance
    noisy = 32 + 12 * blurred + 1.0 * torch.randn(count, 16, 16, generator=generator)
    return noisy.round().clamp(0, 63).long()


def trained_model(steps: int) -> tuple[EmuForCausalLM, Emu3Layout, Tensor]:
    """A model of these grids, its layout and its prompt."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(16, {"vision": 64})
    layout, controls = Emu3Layout(vocabulary), vocabulary.controls
    prompt = torch.tensor([controls["bos"], controls["boi"], 1, 2, controls["image"]])
    config = EmuConfig(
        vocab_size=vocabulary.size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        rope_theta=10000.0,
        qk_norm=True,
    )
    model = EmuForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator, template = torch.Generator().manual_seed(1), layout.block("image", (16, 16))
    weights = torch.cat([torch.zeros(len(prompt)), template.free.float()]).repeat(4, 1)
    for _ in range(steps):
        rows = [torch.cat([prompt, template.fill(codes)]) for codes in smooth_grids(4, generator)]
        ids = torch.stack(rows)
        optimizer.zero_grad()
        loss = model(ids, labels=ids, loss_weights=weights).loss
        loss.backward()
        optimizer.step()
        schedule.step()
    sys.stdout.write(f"{steps} steps of 4 grids, loss {loss.item():.3f} nats a code\n")
    return model.eval(), layout, prompt


def measure_windows(windows: list[int], batches: list[int], repeats: int, steps: int) -> list[dict[str, object]]:
    """One CSV row per window and batch."""
    model, layout, prompt = trained_model(steps)
    engine, rows = Engine(model, layout), list[dict[str, object]]()
    for batch in batches:
        base: tuple[float, Tensor] | None = None
        for window in windows:
            pairs = []
            for _ in range(repeats + 1):  # the first warms up
                cpu = time.process_time()
                codes = engine.generate_codes(
                    [prompt] * batch, grid=(16, 16), seed=list(range(batch)), guidance_scale=1.0, window=window
                )
                pairs.append(time.process_time() - cpu)
            median = statistics.median(pairs[1:])
            base = base or (median, codes)
            stats = engine.last_stats
            assert stats is not None
            rows.append(
                {
                    "window": window,
                    "batch": batch,
                    "passes": stats.passes,
                    "tokens_per_pass": f"{stats.tokens_per_pass:.2f}",
                    "cpu_s_median": f"{median:.3f}",
                    "speedup": f"{base[0] / median:.2f}",
                    "same_codes": bool(torch.equal(codes, base[1])),
                    "training_steps": steps,
                }
            )
    return rows


def main() -> None:
    """Run what is asked for and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", choices=sorted(SETUPS), default=["A", "B"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="on a GPU, run generation_gpu.py")
    parser.add_argument(
        "--grid", nargs="+", type=int, help="codes: height and width, latent frames before them; each setup has its own"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--windows", nargs="+", type=int, help="measure these windows on a model trained for the purpose"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps of that model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = {
        "threads": options.threads,
        "machine": f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if options.windows:
        output = options.output or RESULTS / "generation_windows_cpu.csv"
        write_rows(output, measure_windows(options.windows, options.batches, options.repeats, options.steps), machine)
        return
    for name in options.configs:
        for batch in options.batches:
            grid = tuple(options.grid or SETUPS[name].grid)
            rows = measure(name, batch, grid, options.repeats, getattr(torch, options.dtype))
            write_rows(options.output or RESULTS / "generation_cpu.csv", rows, machine)


def write_rows(path: Path, rows: list[dict[str, object]], machine: dict[str, object]) -> None:
    """Append rows to a CSV, which gets a header when it is new, and show them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow(row | machine)
            sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
