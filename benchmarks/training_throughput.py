"""Tokens a second and memory of a training step on a processor, beside a plain transformers Emu3 text model with the same weights' shapes.

    python benchmarks/training_throughput.py --device cpu
    python benchmarks/training_throughput.py --device cpu --ids 23078       where memory is short: the peer holds logits of all ids, thrice
    python benchmarks/training_throughput.py --device cpu --peer-rows 1     the whole size in 7 GiB: the peer adds gradients up row by row

A body of 30 M weights with Emu3's 184,622 ids, float32, fused AdamW on both sides, one thread. Two cases:

- "documents": lengths drawn uniformly from 64 to 1,024 with seed 0, as many as fill the rows. Ours come packed; the peer gets a document a
  row, padded to its longest row, as a tokenizer and a collator make them.
- "full rows": rows without padding, one document each, the same on both sides.

Each contender runs in a process of its own, so that its memory is its own: imports, model, one small step that makes the moments, then a
step of each case. Processes alternate, and what is compared is the processor time of their steps, which other work on the machine does
not stretch; memory is the peak resident size above that after imports. Rows go to a CSV in results/.

With all ids the peer would need more than 20 GiB for 8 rows, and more than 30 padded. `--peer-rows` lets it make the same step in parts, as
one does where memory is short: every product has at least 1,024 rows then, so that its speed hardly suffers. Shares of memory mean
little in that case, and stay empty.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu.packing import plan_rows

RESULTS = Path(__file__).parent / "results"
NUM_IDS = 184_622
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
}
LENGTH, SHORTEST, SEED = 1024, 64, 0
DRAWN = 32
"""Lengths that are tried for each row."""
CASES, CONTENDERS = ("documents", "full rows"), ("emu", "transformers")


def lengths_of(rows: int) -> list[int]:
    """Lengths of the documents that fill so many rows; those that are drawn and do not fit any more are left out."""
    draw, found = random.Random(SEED), list[int]()
    for _ in range(DRAWN * rows):
        length = draw.randint(SHORTEST, LENGTH)
        if len(plan_rows([*found, length], LENGTH)) <= rows:
            found.append(length)
    return found


def run_one(contender: str, rows: int, num_ids: int, peer_rows: int | None) -> None:
    """Measure one contender in this process; prints a line of JSON."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    step, optimizer, weights = ours(num_ids) if contender == "emu" else theirs(num_ids, peer_rows)
    step([SHORTEST], 1)
    optimizer.step()
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if value.ndim
    )
    found: dict[str, Any] = {"weights": weights, "optimizer": moments}
    for case in CASES:
        lengths = lengths_of(rows) if case == "documents" else [LENGTH] * rows
        optimizer.zero_grad()
        Path("/proc/self/clear_refs").write_text("5")
        begun = time.process_time()
        positions = step(lengths, rows)
        optimizer.step()
        seconds = time.process_time() - begun
        found[case] = {"cpu_s": seconds, "tokens": sum(lengths), "positions": positions, "peak": memory("VmHWM")}
    print(json.dumps(found))


def ours(num_ids: int) -> tuple[Callable[[list[int], int], int], Any, int]:
    """(forward and backward pass of documents, optimizer, bytes of the weights) of this library."""
    import torch

    from emu.documents import TokenDocument
    from emu.model import EmuConfig, EmuForCausalLM
    from emu.packing import pack
    from emu.training.optimizers import build_optimizer
    from emu_tokenizers.training.schedules import OptimizerOptions

    started()
    model = EmuForCausalLM(EmuConfig(vocab_size=num_ids, **SHAPE)).train()
    optimizer, _ = build_optimizer(model, OptimizerOptions(lr=1e-4), 10)

    def step(lengths: list[int], rows: int) -> int:
        documents = [TokenDocument(torch.randint(num_ids, (n,)), torch.ones(n)) for n in lengths]
        batch = pack(documents, LENGTH if rows > 1 or lengths != [SHORTEST] else SHORTEST, pad_token_id=0)
        model(
            batch.input_ids, labels=batch.labels, loss_weights=batch.loss_weights, segment_ids=batch.segment_ids
        ).loss.backward()
        return batch.input_ids.numel()

    return step, optimizer, 4 * sum(weight.numel() for weight in model.parameters())


def theirs(num_ids: int, at_a_time: int | None) -> tuple[Callable[[list[int], int], int], Any, int]:
    """The same of transformers, so many rows of a step at a time; None for all."""
    import torch
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    started()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = Emu3ForCausalLM(Emu3TextConfig(vocab_size=num_ids, attention_dropout=0.0, **ids, **SHAPE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(lengths: list[int], rows: int) -> int:
        ids = torch.randint(num_ids, (len(lengths), max(lengths)))
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        labels = ids.masked_fill(mask == 0, -100)
        predicted = sum(lengths) - len(lengths)
        for part in torch.arange(len(lengths)).split(at_a_time or len(lengths)):
            some = {"input_ids": ids[part], "attention_mask": mask[part], "labels": labels[part]}
            model(**some, use_cache=False, num_items_in_batch=predicted).loss.backward()
        return ids.numel()

    return step, optimizer, 4 * sum(weight.numel() for weight in model.parameters())


def started() -> None:
    """Note the memory after imports, on stderr for whoever started this process."""
    sys.stderr.write(f"imported {memory('VmRSS')}\n")


def memory(field: str) -> int:
    """Bytes of a field of this process in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(contender: str, rows: int, num_ids: int, peer_rows: int | None) -> dict[str, Any]:
    """What `run_one` prints, in a process of its own."""
    words = [sys.executable, __file__, "--contender", contender, "--rows", str(rows), "--ids", str(num_ids)]
    words += [] if peer_rows is None else ["--peer-rows", str(peer_rows)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{contender} ended with exit code {done.returncode} (-9: no memory left): {done.stderr[-500:]}"
        )
    imported = next(int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("imported "))
    return {**json.loads(done.stdout.splitlines()[-1]), "imported": imported}


def table(rows: int, rounds: int, num_ids: int, peer_rows: int | None) -> list[dict[str, Any]]:
    """One CSV row for each case and contender."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for name in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
            found[name].append(measured(name, rows, num_ids, peer_rows))
            sys.stderr.write(f"round {number + 1}, {name}: {found[name][-1]}\n")
    lines = []
    for case in CASES:
        rates = {name: [one[case]["tokens"] / one[case]["cpu_s"] for one in each] for name, each in found.items()}
        peaks = {name: max(one[case]["peak"] - one["imported"] for one in each) for name, each in found.items()}
        for name, each in found.items():
            fixed = each[0]["weights"] + each[0]["optimizer"]
            ratios = [one / other for one, other in zip(rates[name], rates["transformers"], strict=True)]
            lines.append(
                {
                    "case": case,
                    "contender": name,
                    "rows": rows,
                    "ids": num_ids,
                    "tokens": each[0][case]["tokens"],
                    "positions": each[0][case]["positions"],
                    "tokens_per_cpu_s": f"{statistics.median(rates[name]):.1f}",
                    "times_transformers": f"{statistics.median(ratios):.2f}",
                    "lowest": f"{min(ratios):.2f}",
                    "highest": f"{max(ratios):.2f}",
                    "peak_gib": f"{peaks[name] / 2**30:.2f}",
                    "weights_and_moments_gib": f"{fixed / 2**30:.2f}",
                    "peak_share": "" if peer_rows else f"{peaks[name] / peaks['transformers']:.2f}",
                    "rest_share": "" if peer_rows else f"{(peaks[name] - fixed) / (peaks['transformers'] - fixed):.2f}",
                    "peer_rows": peer_rows or "",
                    "rounds": rounds,
                }
            )
    return lines


def main() -> None:
    """Measure both, write the CSV, print it."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--device", choices=["cpu"], default="cpu")
    words.add_argument("--rows", type=int, default=8, help="of 1,024 positions a step (default 8)")
    words.add_argument("--ids", type=int, default=NUM_IDS, help="rows of embedding and head (default 184622)")
    words.add_argument("--peer-rows", type=int, help="rows that the peer takes at a time (default: all)")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--output", type=Path, default=RESULTS / "training_throughput_cpu.csv")
    words.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.contender:
        run_one(given.contender, given.rows, given.ids, given.peer_rows)
        return
    lines = table(given.rows, given.rounds, given.ids, given.peer_rows)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with given.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
