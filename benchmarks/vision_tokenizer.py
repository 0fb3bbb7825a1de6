"""Speed and memory of `VisionTokenizer` against transformers' `Emu3VQVAE` on the same weights, one image on CPU.

    python benchmarks/vision_tokenizer.py --width 32 --size 256

Encodes and decodes one image with each, in a process of its own: malloc's thresholds are fixed, the weights are touched
before the baseline, and the peak is the high-water mark of the process over that baseline. Rounds alternate between the two,
and the codes are compared. Writes benchmarks/results/vision_tokenizer.csv.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "vision_tokenizer.csv"
CONTENDERS = ("transformers", "emu")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM the high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def measure(contender: str, folder: str, size: int, repeats: int) -> dict:
    """Seconds, bytes over the baseline, and codes of one contender in this process."""
    torch.manual_seed(1)
    pixels = torch.rand(1, 3, size, size) * 2 - 1
    if contender == "transformers":
        from transformers import Emu3VQVAE

        model = Emu3VQVAE.from_pretrained(folder).eval()

        def run() -> torch.Tensor:
            codes = torch.stack(model.encode(pixels, [(size, size)]).image_tokens)
            model.decode(codes)
            return codes
    else:
        from emu_tokenizers import VisionTokenizer

        model = VisionTokenizer.from_pretrained(folder)

        def run() -> torch.Tensor:
            codes = model.encode(pixels)
            model.decode(codes)
            return codes

    with torch.no_grad():
        sum(float(p.sum()) for p in model.parameters())  # every page of the weights is in memory
        baseline = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark of loading
        codes = run()
        peak = memory("VmHWM") - baseline
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "bytes": peak, "codes": codes.flatten().tolist()}


def make_folder(folder: str, width: int) -> None:
    """Random weights of Emu3's architecture at some width, saved by transformers."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(0)
    Emu3VQVAE(Emu3VQVAEConfig(base_channels=width, hidden_size=4 * width)).save_pretrained(folder)


def child(contender: str, folder: str, args: argparse.Namespace) -> dict:
    """Runs `measure` in a fresh process with fixed malloc thresholds."""
    paths = [str(ROOT), str(ROOT / "tokenizers"), str(ROOT / "kernels")]
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, "--child", contender, "--folder", folder, "--size", str(args.size)]
    command += ["--repeats", str(args.repeats)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_results(row: dict) -> None:
    """Appends a row to the CSV of results."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Compares the two and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="channels of the first level (Emu3 has 256)")
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds, the median is reported")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs in each process, the best counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.folder, args.size, args.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder, args.width)
        rounds = [{name: child(name, folder, args) for name in CONTENDERS} for _ in range(args.rounds)]
    if any(r["emu"]["codes"] != r["transformers"]["codes"] for r in rounds):
        raise SystemExit("the two give different codes: no figures")
    found = {n: {k: median(r[n][k] for r in rounds) for k in ("seconds", "bytes")} for n in CONTENDERS}
    theirs, ours = found["transformers"], found["emu"]
    for name in CONTENDERS:
        print(f"{name:13s} {found[name]['seconds']:7.3f} s   {found[name]['bytes'] / 2**20:8.1f} MiB over the weights")
    speed, memory_share = theirs["seconds"] / ours["seconds"], ours["bytes"] / theirs["bytes"]
    print(f"{speed:.2f} times as fast, {memory_share:.2f} of the memory, identical codes")
    write_results(
        {
            "width": args.width, "size": args.size, "threads": args.threads,
            "transformers_s": round(theirs["seconds"], 4), "emu_s": round(ours["seconds"], 4),
            "transformers_mib": round(theirs["bytes"] / 2**20, 1), "emu_mib": round(ours["bytes"] / 2**20, 1),
            "speed_ratio": round(speed, 2), "memory_ratio": round(memory_share, 3),
            "torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
