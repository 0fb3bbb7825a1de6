"""`emu describe`: text about pictures and clips.

emu describe cat.png clip.mp4 --prompt "What is it?"
emu describe questions.jsonl                       {"items": [{"video": "clip.mp4"}, "What happens?"]} per line
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from emu.cli.batch import reader_of, results_of
from emu.cli.batch_options import add_model_option
from emu.cli.line_problems import COMMAND_LINE, Problems, TooManyBad, add_option
from emu.cli.manifest import OutputManifest
from emu.cli.prompts import CARRIED, JSON_SUFFIXES, check_words, written_prompts
from emu.data.tokenizing.line_source import names_of
from emu.data.tokenizing.named_files import is_clip
from emu.data.tokenizing.records import state_of
from emu.documents import Video
from emu.generation.limits import check_whole
from emu.lines import BadLine, Place, shown
from emu.pipeline import Emu
from emu.pipeline.requests import Size
from emu_tokenizers.files import holding
from emu_tokenizers.pixels.images import open_image

DESCRIPTIONS = "descriptions.jsonl"


@dataclass(frozen=True)
class Question:
    """What is asked about a picture or clip, or a document that ends in a question.

    Attributes:
        place: where the command names it.
        about: what is asked about: {"image": file}, or {"items": [...]} and what the line says beside it.
        folder: that files of items are named from.
        asked: the words and settings.
    """

    place: Place
    about: Mapping[str, Any] = field(hash=False)
    folder: Path
    asked: Mapping[str, Any] = field(hash=False)

    def record(self) -> dict[str, Any]:
        """What is asked, as the file of descriptions tells it."""
        return {**self.about, **self.asked}

    def digest(self, model: str) -> str:
        """16 hexadecimal digits that change with the pictures, the question and the model."""
        named = [self.about["image"]] if "image" in self.about else []
        named += [name for item in self.about.get("items", ()) for name in names_of(item)]
        states = [state_of(self.folder / name) for name in named]
        told = json.dumps([self.record(), states if "items" in self.about else states[0], model], sort_keys=True)
        return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def main(arguments: Sequence[str]) -> int:
    """Run `emu describe`.

    Returns:
        The exit code: 1 where a picture or clip could not be described, 0 otherwise.
    """
    options = _parser().parse_args(arguments)
    check_whole("--batch-size", options.batch_size, least=1)
    problems = Problems(options.max_bad)
    emu = Emu.from_pretrained(options.model, device=options.device)
    size = tuple(options.size) if options.size else emu.defaults.size
    prompt = emu.defaults.question if options.prompt is None else options.prompt
    asked = {"prompt": prompt, "size": size and list(size), "seed": options.seed}
    asked |= {"max_new_tokens": options.max_new_tokens, "temperature": options.temperature}
    questions = _questions(options.images, asked, problems)
    output: Path | None = options.output
    with nullcontext() if output is None else holding(output, "emu describe"):
        manifest = (
            OutputManifest(output, f"{options.model} {emu.fingerprint}", DESCRIPTIONS) if output is not None else None
        )
        try:
            for question, text in _described(questions, emu, size, options, problems, manifest):
                table = {**question.about, "text": text}
                name = question.about.get("image", f"{question.place}")
                line = json.dumps(table, ensure_ascii=False) if options.json else f"{name}: {text}"
                tqdm.write(line.encode("utf-8", "backslashreplace").decode())
        except TooManyBad as error:
            print(error, file=sys.stderr)
        finally:
            if manifest is not None and output is not None:
                manifest.close(questions)
                problems.write(output)
    return 1 if problems.num_bad else 0


def _questions(files: Sequence[Path], asked: Mapping[str, Any], problems: Problems) -> list[Question]:
    """A question about each picture or clip and each line of the files of lines; bad lines go to `problems`."""
    found: list[Question] = []
    for number, file in enumerate(files, start=1):
        if file.suffix.lower() not in JSON_SUFFIXES:
            found.append(Question(Place(COMMAND_LINE, number, "argument"), {"image": str(file)}, Path(), asked))
            continue
        check_words([str(file)])
        for written in written_prompts([str(file)]):
            with problems.containing(written.place):
                table = written.table()
                unknown = sorted(set(table) - {"items", *CARRIED})
                if unknown or not isinstance(table.get("items"), list) or not table["items"]:
                    form = '{"items": [{"image": "cat.png"}, "What is it?"]}'
                    raise BadLine(
                        "wrong value", f"the line is {shown(table)}; expected {form}, with no more than {CARRIED}"
                    )
                lines = {name: value for name, value in asked.items() if name != "prompt"}
                found.append(Question(written.place, table, written.folder, lines))
    return found


def _described(
    questions: Sequence[Question],
    emu: Emu,
    size: Size | None,
    options: argparse.Namespace,
    problems: Problems,
    manifest: OutputManifest | None,
) -> Iterator[tuple[Question, str]]:
    """Each question with its answer, in batches; those that the folder of outputs has already are not asked again."""

    def answers(batch: list[Question], documents: list[Any]) -> list[str]:
        return emu.generate_text(
            documents,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )

    limit, total = options.batch_size, len(questions)
    with tqdm(total=total, unit="file", disable=total <= limit, dynamic_ncols=True) as bar:
        for start in range(0, total, limit):
            batch = questions[start : start + limit]
            known = {question: manifest.find(question) for question in batch} if manifest is not None else {}
            new = [question for question in batch if known.get(question) is None]
            found = dict(results_of(new, lambda question: _document(question, emu, size), answers, problems))
            for question in batch:
                if question in found:
                    if manifest is not None:
                        manifest.add(question, text=found[question])
                    yield question, found[question]
                elif record := known.get(question):
                    yield question, record["text"]
            problems.read(len(batch))
            bar.update(len(batch))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emu describe", description="Write text about pictures and clips.")
    parser.add_argument(
        "images", type=Path, nargs="+", help='pictures, animations, videos, and JSON Lines files of {"items": [...]}'
    )
    add_model_option(parser)
    parser.add_argument(
        "--prompt", help='question that follows the picture, "" for none (the one that the model was trained on)'
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size to which pictures are resized (the model's own)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="maximum length of an answer (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="sampling seed (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per batch (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of plain text")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder for {DESCRIPTIONS}; run the command again to resume (none: only printed)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    add_option(parser)
    return parser


def _document(question: Question, emu: Emu, size: Size | None) -> list[Any]:
    """What the answer follows: a picture or clip and the words, or the items of a line."""
    if "image" in question.about:
        words = [question.asked["prompt"]] if question.asked["prompt"] else []
        return [_opened(Path(question.about["image"]), emu, size), *words]
    return reader_of(emu, question.folder, size).values(question.about["items"])


def _opened(file: Path, emu: Emu, size: Size | None) -> Image.Image | Video:
    """A picture at (height, width), or as it is where no size is known; of a clip as many frames as the model's own clips have."""
    if is_clip(file):
        return Video.open(file, fps=emu.defaults.fps, frames=emu.defaults.frames, size=size)
    image = open_image(file)
    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
