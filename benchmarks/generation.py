"""Speed of the engine beside transformers' documented call for Emu3 image generation, on one CPU thread and random weights.

    python benchmarks/generation.py --configs A B --batches 1 4 --repeats 3
    python benchmarks/generation.py --windows 1 2 4 8 16 --repeats 3

A has the vocabulary of the released model and a small body (the head dominates), B and C have the proportions of the released model
(head 10 % of the weights, vision slice 18 % of the vocabulary). The baseline is `generate(prefix_allowed_tokens_fn, guidance_scale,
negative_prompt_ids, ...)` of transformers' Emu3 page, without the tokenizer call that its prefix function makes for every token.
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
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration

from emu.generation import Engine
from emu.layouts import Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary

RESULTS = Path(__file__).parent / "results"
TINY_VQ = {
    "codebook_size": 64,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "hidden_size": 32,
    "num_attention_heads": 1,
}


@dataclass(frozen=True)
class Setup:
    """Sizes of a pair of models. `divisor` scales the released vocabulary down."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    wide: int
    divisor: int = 1


SETUPS = {
    "A": Setup(256, 4, 4, 2, 704),
    "B": Setup(512, 8, 8, 2, 1792, divisor=32),
    "C": Setup(1024, 16, 16, 4, 3584, divisor=8),
}


def scaled_vocabulary(divisor: int) -> Vocabulary:
    """The table of the released Emu3, or one of the same proportions."""
    text, codes = 151643 // divisor, 32768 // divisor
    names = {"pad": 0, "eol": 203, "eof": 204, "bos": 206, "eos": 207, "image": 208, "boi": 209, "eoi": 210}
    controls = {name: text + place for name, place in names.items()}
    return Vocabulary(text + 211 + codes, {"vision": (text + 211, codes)}, controls, (0, text))


def build_pair(
    setup: Setup, vocabulary: Vocabulary, seed: int = 0, init: float = 0.02
) -> tuple[Emu3ForConditionalGeneration, EmuForCausalLM]:
    """transformers' model and ours with the same weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary.size,
        "hidden_size": setup.hidden,
        "intermediate_size": setup.wide,
        "num_hidden_layers": setup.layers,
        "num_attention_heads": setup.heads,
        "num_key_value_heads": setup.kv_heads,
        "initializer_range": init,
        "pad_token_id": vocabulary.controls["pad"],
        "bos_token_id": vocabulary.controls["bos"],
        "eos_token_id": vocabulary.controls["eos"],
    }
    first, count = vocabulary.ranges["vision"]
    names = {f"<|visual token {code:06d}|>": first + code for code in range(count)}
    names |= {"<|extra_200|>": vocabulary.controls["eol"], "<image>": vocabulary.controls["image"]}
    config = Emu3Config(vq_config=TINY_VQ, text_config=sizes, vocabulary_map=names)
    config._attn_implementation = "sdpa"
    theirs = Emu3ForConditionalGeneration(config).eval()
    ours = EmuForCausalLM(EmuConfig(**sizes)).eval()
    weights = {name.replace("model.text_model.", "model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({name: value for name, value in weights.items() if "vqmodel" not in name})
    return theirs, ours


def transformers_reference(
    model: Emu3ForConditionalGeneration,
    vocabulary: Vocabulary,
    prompts: list[Tensor],
    negatives: list[Tensor],
    grid: tuple[int, int],
    **options: object,
) -> Tensor:
    """Codes (B, h, w) by the call of transformers' Emu3 documentation."""
    controls = vocabulary.controls
    visual_tokens = model.model.vocabulary_mapping.image_tokens
    height, width = grid

    def prefix_allowed_tokens_fn(batch_id: int, input_ids: Tensor) -> object:
        mark = torch.tensor([controls["image"]])
        eoi, eos, pad, eof, eol = (torch.tensor([controls[name]]) for name in ("eoi", "eos", "pad", "eof", "eol"))
        position = torch.nonzero(input_ids == mark, as_tuple=True)[0][0]
        offset = input_ids.shape[0] - position
        if offset % (width + 1) == 0:
            return eol
        if offset == (width + 1) * height + 1:
            return eof
        if offset == (width + 1) * height + 2:
            return eoi
        if offset == (width + 1) * height + 3:
            return eos
        if offset > (width + 1) * height + 3:
            return pad
        return visual_tokens

    ids, mask = left_padded(prompts, controls["pad"])
    negative_ids, negative_mask = left_padded(negatives, controls["pad"])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        negative_prompt_ids=negative_ids,
        negative_prompt_attention_mask=negative_mask,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        max_new_tokens=height * (width + 1) + 3,
        **options,
    )
    template = Emu3Layout(vocabulary).block("image", grid)
    return torch.stack([template.read(row[ids.shape[1] :]) for row in out])


def left_padded(rows: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of one length (B, S), and the mask of what is not padding."""
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :], mask[place, length - len(row) :] = row, 1
    return ids, mask


def make_prompts(vocabulary: Vocabulary, batch: int, length: int, seed: int) -> list[Tensor]:
    """Random prompts of `length` tokens that end in a header of three text tokens."""
    generator, controls = torch.Generator().manual_seed(seed), vocabulary.controls
    header = torch.tensor([controls["boi"], 1, 2, 3, controls["image"]])
    rows = torch.randint(0, vocabulary.text[1], (batch, length - 6), generator=generator)
    return [torch.cat([torch.tensor([controls["bos"]]), row, header]) for row in rows]


def contenders(name: str, batch: int, grid: tuple[int, int], dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """What is timed; each takes the settings of sampling and returns codes."""
    vocabulary = scaled_vocabulary(SETUPS[name].divisor)
    theirs, ours = (model.to(dtype) for model in build_pair(SETUPS[name], vocabulary))
    prompts, negatives = make_prompts(vocabulary, batch, 32, 1), make_prompts(vocabulary, batch, 56, 2)
    top_k = min(2048, vocabulary.ranges["vision"][1])
    engines = {
        kind: Engine(ours, Emu3Layout(vocabulary), deterministic=kind == "deterministic")
        for kind in ("engine", "deterministic")
    }

    def transformers_call(greedy: bool) -> Tensor:
        options = {"do_sample": False} if greedy else {"do_sample": True, "top_k": top_k}
        return transformers_reference(theirs, vocabulary, prompts, negatives, grid, guidance_scale=3.0, **options)

    def engine_call(engine: Engine, greedy: bool) -> Tensor:
        return engine.generate_codes(
            prompts, negatives, grid, guidance_scale=3.0, top_k=top_k, temperature=0.0 if greedy else 1.0
        )

    return {"transformers": transformers_call} | {
        kind: (lambda greedy, engine=engine: engine_call(engine, greedy)) for kind, engine in engines.items()
    }


def measure(name: str, batch: int, grid: tuple[int, int], repeats: int, dtype: torch.dtype) -> list[dict[str, object]]:
    """One CSV row per contender, timed in turns."""
    calls = contenders(name, batch, grid, dtype)
    greedy = {kind: call(True) for kind, call in calls.items()}  # also warms up
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in calls}
    for _ in range(repeats):
        for kind, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call(False)
            times[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
    base = statistics.median(cpu for cpu, _ in times["transformers"])
    tokens = grid[0] * (grid[1] + 1) + 3
    rows: list[dict[str, object]] = []
    for kind, pairs in times.items():
        cpu_times = [cpu for cpu, _ in pairs]
        median = statistics.median(cpu_times)
        rows.append(
            {
                "config": name,
                "contender": kind,
                "batch": batch,
                "grid": "x".join(map(str, grid)),
                "dtype": str(dtype).removeprefix("torch."),
                "cpu_s_min": f"{min(cpu_times):.3f}",
                "cpu_s_median": f"{median:.3f}",
                "cpu_s_max": f"{max(cpu_times):.3f}",
                "wall_s_median": f"{statistics.median(wall for _, wall in pairs):.3f}",
                "cpu_ms_per_token": f"{1000 * median / tokens / batch:.3f}",
                "speedup": f"{base / median:.2f}",
                "greedy_codes_equal": bool(torch.equal(greedy[kind], greedy["transformers"])),
            }
        )
    return rows


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
    parser.add_argument("--grid", nargs=2, type=int, default=[16, 16])
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
            rows = measure(name, batch, tuple(options.grid), options.repeats, getattr(torch, options.dtype))
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
