"""`emu rank FOLDER --reward CLASS_PATH --output FOLDER`: score candidates, and write them ranked and as pairs.

emu generate-images prompts.txt --model runs/shapes/model --candidates 8 --output drawn
emu rank drawn --model runs/shapes/model --reward emu.worlds.world_prompts.WorldReward --output ranked
emu fit --config shapes-dpo --data.pairs ranked/pairs.jsonl
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from emu.cli.line_problems import Problems, add_option
from emu.cli.manifest import MANIFEST
from emu.configuration import import_object
from emu.data.preferences import RankedAnswer, RankedAnswers, write_ranked
from emu.documents import CodeSegment
from emu.lines import BadLine, Place, read_lines, shown
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.rewards import Candidate, Reward, score

AT_A_TIME = 64


@dataclass(frozen=True)
class Drawn:
    """A candidate of a manifest.

    Attributes:
        prompt: its words.
        prompt_ids: (m,) int64, ending in the header of the block.
        codes: (h, w) int64, with a last axis where there are several codebooks.
        seed: of its noise.
    """

    prompt: str
    prompt_ids: Tensor
    codes: Tensor
    seed: int


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    words = argparse.ArgumentParser(
        prog="emu rank",
        description="Score the pictures that emu generate-images --candidates left in a folder, and write them by prompt in the order of "
        "their scores (ranked.jsonl, for quality fine-tuning) and as pairs of best and worst (pairs.jsonl, for DPO).",
    )
    words.add_argument("folder", type=Path, help="folder written by emu generate-images --candidates")
    words.add_argument("--model", required=True, help="folder of the model that generated them, for its tokenizers")
    words.add_argument(
        "--reward", required=True, metavar="CLASS_PATH", help="class path of a function of candidates, or of a class"
    )
    words.add_argument(
        "--reward-options", type=json.loads, default={}, metavar="JSON", help="arguments of the class, as a JSON object"
    )
    words.add_argument(
        "--margin", type=float, default=0.0, help="minimum score difference of a pair, exclusive (%(default)s)"
    )
    words.add_argument("--output", type=Path, required=True, help="output folder for ranked.jsonl and pairs.jsonl")
    add_option(words)
    return words


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        The exit code: 1 where records were bad or had no score, 0 otherwise.

    Raises:
        FileNotFoundError, ValueError: there are no candidates, or the reward cannot be made.
    """
    options = parser().parse_args(arguments)
    manifest = options.folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} does not exist; draw candidates with emu generate-images --candidates 8")
    reward = made(options.reward, options.reward_options)
    tokenizer = MultimodalTokenizer.from_pretrained(options.model)
    problems = Problems(options.max_bad)
    drawn = read_candidates(manifest, tokenizer, problems)
    if not drawn:
        raise ValueError(
            f"{manifest} holds no candidates with codes; draw them with emu generate-images --candidates 8"
        )
    scores = scores_of(reward, tokenizer, drawn)
    ranked = in_order(drawn, scores, tokenizer)
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"reward": options.reward, "reward_options": options.reward_options, "model": options.model}
    pairs = write_ranked(options.output, ranked, tokenizer.vocabulary, about, options.margin)
    unscored, known = int(scores.isnan().sum()), scores[~scores.isnan()]
    best = [some.answers[0].score for some in ranked]
    print(
        f"{len(known)} candidates of {len(ranked)} prompts: mean score {float(known.mean()):.4g}, of the best "
        f"{sum(best) / max(1, len(best)):.4g}; {pairs} pairs, {unscored} without a score, {problems.num_bad} bad lines; "
        f"written to {options.output}"
    )
    if not pairs:
        print(
            f"no pairs: no prompt has two answers whose scores are more than {options.margin} apart; draw more candidates of each, "
            "or harder prompts",
            file=sys.stderr,
        )
    return 1 if unscored or problems.num_bad else 0


def made(class_path: str, options: dict[str, Any]) -> Reward:
    """The reward of a class path: a function as it is, a class with its arguments.

    Raises:
        ValueError: it cannot be found, takes other arguments, or cannot be called.
    """
    found = import_object(class_path)
    if not isinstance(options, dict):
        raise ValueError(f"--reward-options is {shown(options)}; expected a JSON object of arguments")
    if inspect.isclass(found):
        try:
            found = found(**options)
        except TypeError as error:
            raise ValueError(f"--reward-options do not fit {class_path}: {error}") from error
    elif options:
        raise ValueError(f"--reward-options for {class_path}, which is no class; a function takes the candidates alone")
    if not callable(found):
        raise ValueError(
            f"{class_path} is {type(found).__name__}; expected a function of candidates, or a class of such"
        )
    reward: Reward = found
    return reward


def read_candidates(manifest: Path, tokenizer: MultimodalTokenizer, problems: Problems) -> list[Drawn]:
    """The candidates of a manifest, each once; what is wrong with others goes to `problems`."""
    found, seen = list[Drawn](), set[tuple[str, tuple[int, ...], int]]()
    for line in read_lines(manifest):
        with problems.containing(Place(line.file, line.number)):
            one = _candidate(line.table(), tokenizer)
            key = (one.prompt, tuple(one.codes.flatten().tolist()), one.seed)
            if key not in seen:
                seen.add(key)
                found.append(one)
        problems.read()
    return found


def _candidate(record: dict[str, Any], tokenizer: MultimodalTokenizer) -> Drawn:
    """A record of the manifest.

    Raises:
        BadLine: it has no prompt in words or no codes, or codes of another tokenizer.
    """
    prompt, seed = record.get("prompt"), record.get("seed")
    if not isinstance(prompt, str) or not isinstance(seed, int):
        raise BadLine("wrong value", "no prompt in words with a seed; documents with pictures are not ranked")
    if "codes" not in record:
        raise BadLine("no codes", "the record has no codes; draw it with emu generate-images --candidates")
    try:
        codes = torch.tensor(record["codes"], dtype=torch.int64)
        modality = tokenizer.layout.modality("image")
        grid = modality.check_codes(codes, len(tokenizer.layout.code_ranges(modality.codebook)))
        tokenizer.layout.block("image", grid).fill(codes)
    except (TypeError, ValueError) as error:
        raise BadLine("wrong value", f"codes of another tokenizer: {error}") from error
    return Drawn(prompt, tokenizer.prompt([prompt], "image", grid), codes, seed)


def scores_of(reward: Reward, tokenizer: MultimodalTokenizer, drawn: Sequence[Drawn]) -> Tensor:
    """(n,) float64 scores of candidates, NaN where there are none."""
    parts = []
    for start in tqdm(range(0, len(drawn), AT_A_TIME), unit="batch", disable=not sys.stderr.isatty()):
        some = drawn[start : start + AT_A_TIME]
        values = [tokenizer.decode_segment(CodeSegment("image", one.codes)) for one in some]
        asked = [Candidate((one.prompt,), value, one.codes, "image") for one, value in zip(some, values, strict=True)]
        parts.append(score(reward, asked))
    return torch.cat(parts)


def in_order(drawn: Sequence[Drawn], scores: Tensor, tokenizer: MultimodalTokenizer) -> list[RankedAnswers]:
    """The candidates that have a score by their prompts, the best first and the earlier seed first among equals."""
    groups: dict[tuple[int, ...], tuple[str, list[RankedAnswer]]] = {}
    for one, value in zip(drawn, scores.tolist(), strict=True):
        block = tokenizer.layout.block("image", tuple(one.codes.shape[:2]))
        _, answers = groups.setdefault(tuple(one.prompt_ids.tolist()), (one.prompt, []))
        if value == value:  # not a NaN
            answers.append(RankedAnswer(tuple(block.fill(one.codes).tolist()), value, one.seed))
    return [
        RankedAnswers(prompt, ids, tuple(sorted(answers, key=lambda one: (-one.score, one.seed))))
        for ids, (prompt, answers) in groups.items()
        if answers
    ]
