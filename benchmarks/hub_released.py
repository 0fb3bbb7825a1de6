"""A released Emu3 folder from prompt to picture: `Emu` beside transformers' documented code, on one CPU thread and random weights.

    python benchmarks/hub_released.py --batches 1 4 --repeats 3

Both open the same folder (transformers' format, the released vocabulary of 184,622 ids, a body of 3.5 M weights) and do the same work:
tokenise prompts and negative prompts, generate 16 x 16 codes with guidance 3 and top-k 2048, decode, and make PIL images. `load` is the
time to open the folder. Process CPU seconds are compared, because they do not depend on what else the machine does. Rows go to a CSV in
results/.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, Emu3ForConditionalGeneration

from emu import Emu
from emu.families.emu3.templates import NEGATIVE_PROMPT
from emu.families.transformers_emu3.tiny import write_model
from emu.hub.transformers_reference import generate_codes

RESULTS = Path(__file__).parent / "results"
RELEASED = {"num_text": 151643, "num_codes": 32768}
BODY = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
PROMPTS = [
    "a portrait of young girl.",
    "a shiba inu",
    "def f(x): return x",
    "a red circle on a blue ground, film grained",
]
SIDE = 128


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """(CPU seconds, wall seconds, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def transformers_images(
    model: Any, processor: Any, prompts: list[str], **sampling: Any
) -> tuple[torch.Tensor, list[Any]]:
    """Codes and pictures by transformers."""
    negatives = [NEGATIVE_PROMPT] * len(prompts)
    codes = generate_codes(model, processor, prompts, negatives, ratio="1:1", image_area=SIDE * SIDE, **sampling)
    with torch.no_grad():
        pixels = model.model.vqmodel.decode(codes)
    return codes, processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"]


def emu_images(emu: Emu, prompts: list[str], **sampling: Any) -> tuple[torch.Tensor, list[Any]]:
    """Codes and pictures by `Emu`."""
    results = emu.generate_images(prompts, size=(SIDE, SIDE), **sampling)
    return torch.stack([result.codes for result in results]), [result.image for result in results]


def rows(folder: Path, batches: list[int], repeats: int) -> list[dict[str, Any]]:
    """One CSV row per job and contender."""
    load_theirs = timed(
        lambda: (Emu3ForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder))
    )
    load_ours = timed(lambda: Emu.from_pretrained(folder, device="cpu"))
    (model, processor), emu = load_theirs[2], load_ours[2]
    found = [row("load", 0, "transformers", [load_theirs]), row("load", 0, "emu", [load_ours])]
    for batch in batches:
        prompts = PROMPTS[:batch]
        theirs, ours = transformers_images(model, processor, prompts)[0], emu_images(emu, prompts, temperature=0.0)[0]
        calls = {
            "transformers": lambda prompts=prompts: transformers_images(
                model, processor, prompts, do_sample=True, top_k=2048
            ),
            "emu": lambda prompts=prompts: emu_images(emu, prompts),
        }
        times: dict[str, list[Any]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(timed(call))
        base = statistics.median(cpu for cpu, *_ in times["transformers"])
        for name, each in times.items():
            speedup = f"{base / statistics.median(cpu for cpu, *_ in each):.2f}"
            found.append(
                row("images", batch, name, each, speedup=speedup, greedy_codes_equal=torch.equal(theirs, ours))
            )
    return found


def row(job: str, batch: int, contender: str, times: list[Any], **more: Any) -> dict[str, Any]:
    """A line of the table."""
    cpu, wall = [one[0] for one in times], [one[1] for one in times]
    return {
        "job": job,
        "contender": contender,
        "batch": batch,
        "cpu_s_min": f"{min(cpu):.3f}",
        "cpu_s_median": f"{statistics.median(cpu):.3f}",
        "cpu_s_max": f"{max(cpu):.3f}",
        "wall_s_median": f"{statistics.median(wall):.3f}",
        "speedup": more.get("speedup", ""),
        "greedy_codes_equal": more.get("greedy_codes_equal", ""),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Write the folder of a tiny model, run both on it, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "hub_released_cpu.csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(write_model(folder, **RELEASED, **BODY), options.batches, options.repeats)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    for line in found:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
