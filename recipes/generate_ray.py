"""Batch generation of pictures on a Ray cluster: lines in, PNG files or a Parquet table out.

    pip install 'emu-tokens[ray]'
    python generate_ray.py prompts.jsonl --model digits --output images --workers 2
    python generate_ray.py prompts.jsonl --model digits --output table --format parquet --workers 8 --gpus 1

A line is {"prompt": "a handwritten seven"}, and optionally "seed" (by default the number of the line, from 0), "size", "guidance_scale",
"negative_prompt", "temperature", "top_k", "top_p". Each worker loads the model once and draws batches of lines. If a worker is lost, Ray
gives its batch to another. Without a cluster (ray start, RAY_ADDRESS) workers run on this machine; paths must be valid on all
machines. For resumable runs, and without Ray, launch `emu generate-images` with torchrun or srun.
"""

import argparse
import json
import sys
from pathlib import Path

FIELDS = ("line", "prompt", "seed", "image", "error")


class Draw:
    """Draws batches of lines in one worker, which keeps its model."""

    def __init__(self, model, deterministic, folder):
        from emu import Emu

        self.emu, self.folder = Emu.from_pretrained(model, deterministic=deterministic), folder

    def __call__(self, batch):
        lines = list(zip(batch["line"].tolist(), batch["text"].tolist(), strict=True))
        groups = {}
        for line, text in lines:
            try:
                table = json.loads(text)
                prompt, seed = table.pop("prompt"), table.pop("seed", line)
                groups.setdefault(json.dumps(table, sort_keys=True), []).append((line, prompt, seed))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                groups[line] = [(line, text, 0, f'{error!r}; expected {{"prompt": "a cat", ...}}')]
        rows = [row for settings, asked in groups.items() for row in self.rows(settings, asked)]
        columns = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
        return dict(zip(FIELDS, map(list, columns), strict=True))

    def rows(self, settings, asked):
        """A row for each (line, prompt, seed) of equal settings; one by one where they cannot be drawn together."""
        if len(asked[0]) > 3:
            line, text, seed, error = asked[0]
            return [(line, text, seed, b"", error)]
        lines, prompts, seeds = zip(*asked, strict=True)
        given = json.loads(settings)
        size = given.pop("size", None)
        try:
            size = tuple(size) if isinstance(size, list) else size
            results = self.emu.generate_images(list(prompts), seed=list(seeds), size=size, **given)
        except (ValueError, TypeError) as error:
            if len(asked) > 1:
                return [row for one in asked for row in self.rows(settings, [one])]
            return [(lines[0], str(prompts[0]), 0, b"", str(error))]
        return [
            (line, one.prompt, one.seed, self.stored(line, one), "") for line, one in zip(lines, results, strict=True)
        ]

    def stored(self, line, result):
        """The PNG of a result; empty once it is a file."""
        from emu.media import png_bytes

        if self.folder is None:
            return png_bytes(result.image, result.about)
        result.save(Path(self.folder) / f"{line + 1:06d}-seed{result.seed}.png")
        return b""


def parsed():
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="a file of JSON lines")
    parser.add_argument("--model", default="digits", help="folder of a trained model, or a bundled one (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--format", choices=("files", "parquet"), default="files", help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="that hold a model each (%(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="lines that a worker takes at a time (%(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="the same pictures whatever the batches; slower")
    return parser.parse_args()


def mistake(options):
    """What is wrong with the request; None where nothing is."""
    if not options.prompts.is_file() or not options.prompts.read_bytes().strip():
        return f"{options.prompts} is missing or empty; expected a file with one JSON object a line"
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        return f"{options.output} is not empty; name a new folder"
    if min(options.workers, options.batch_size) < 1:
        return f"--workers is {options.workers} and --batch-size {options.batch_size}; expected 1 or more"
    return None


def main():
    """Draw the lines; returns 1 where some of them are bad."""
    options = parsed()
    try:
        import ray
    except ModuleNotFoundError:
        print("Ray is not installed; pip install 'emu-tokens[ray]'", file=sys.stderr)
        return 2
    if wrong := mistake(options):
        print(wrong, file=sys.stderr)
        return 2

    texts = options.prompts.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    lines = [{"line": number, "text": text} for number, text in enumerate(texts) if text.strip()]
    ray.init(ignore_reinit_error=True)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    blocks = min(len(lines), max(options.workers, -(-len(lines) // options.batch_size)))
    rows = ray.data.from_items(lines, override_num_blocks=blocks).map_batches(
        Draw,
        fn_constructor_args=(options.model, options.deterministic, str(output) if options.format == "files" else None),
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_gpus=options.gpus or None,
    )
    try:
        if options.format == "parquet":
            rows.write_parquet(str(output), ray_remote_args={"num_cpus": 0})  # workers may hold all processors
            rows = ray.data.read_parquet(str(output)).select_columns(["line", "error"])
        bad = [(row["line"] + 1, row["error"]) for row in rows.iter_rows() if row["error"]]
    except ray.exceptions.RayError as error:  # a worker could not load the model, or ended again and again
        print(f"the workers failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    for line, error in sorted(bad):
        print(f"{options.prompts} line {line}: {error}", file=sys.stderr)
    print(f"{len(lines) - len(bad)} pictures in {options.output}, {len(bad)} bad lines")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
