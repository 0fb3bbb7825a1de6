"""`emu rank`: from drawn candidates to ranked answers and pairs."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from emu.cli.generate_images import main as generate
from emu.cli.rank import main as rank
from emu.data.preferences import PreferenceData

REWARDS = """
class Sum:
    def __init__(self, sign=1):
        self.sign = sign

    def __call__(self, candidates):
        return [self.sign * float(one.codes.sum()) for one in candidates]

def unsure(candidates):
    return [float("nan") if one.prompt == "a ball" else float(one.codes.sum()) for one in candidates]
"""


@pytest.fixture(scope="module")
def drawn(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank")
    tiny_emu.save_pretrained(folder / "model")
    words = ["a red circle", "a ball", "--model", str(folder / "model"), "--output", str(folder / "drawn")]
    assert generate([*words, "--candidates", "4", "--seed", "7"]) == 0
    return folder


@pytest.fixture
def words(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_here.py").write_text(REWARDS)
    yield [str(drawn / "drawn"), "--model", str(drawn / "model"), "--output", str(tmp_path / "ranked")]
    sys.modules.pop("rewards_here", None)


def test_candidates_carry_their_seeds_and_codes_and_are_those_of_python(drawn, tiny_emu):
    records = [json.loads(line) for line in (drawn / "drawn" / "manifest.jsonl").read_text().splitlines()]
    assert sorted((one["prompt"], one["seed"]) for one in records) == [
        (prompt, seed) for prompt in ("a ball", "a red circle") for seed in (7, 8, 9, 10)
    ]
    (again,) = tiny_emu.generate_images("a ball", seed=9)
    (record,) = [one for one in records if (one["prompt"], one["seed"]) == ("a ball", 9)]
    assert record["codes"] == again.codes.tolist()


def test_answers_are_ranked_and_paired_and_read_as_they_were_drawn(words, drawn, tiny_emu, tmp_path, capsys):
    assert rank([*words, "--reward", "rewards_here.Sum", "--reward-options", '{"sign": -1}']) == 0
    assert "8 candidates of 2 prompts" in capsys.readouterr().out
    head, *ranked = [json.loads(line) for line in (tmp_path / "ranked" / "ranked.jsonl").read_text().splitlines()]
    assert head["vocabulary"] == tiny_emu.tokenizer.vocabulary.fingerprint and head["reward_options"] == {"sign": -1}
    for one in ranked:
        scores = [answer["score"] for answer in one["answers"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 4
        codes = tiny_emu.tokenizer.layout.block("image", (2, 2)).read(torch.tensor(one["answers"][0]["ids"]))
        assert -float(codes.sum()) == scores[0]
    data = PreferenceData(str(drawn / "model"), str(tmp_path / "ranked" / "pairs.jsonl"))
    (source,) = data.training_sources().values()
    assert len(source) == 2
    assert rank([*words, "--reward", "rewards_here.Sum", "--margin", "1e9"]) == 0
    assert "no pairs" in capsys.readouterr().err


def test_what_has_no_score_or_no_codes_is_left_out_and_counted(words, drawn, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    lines = (drawn / "drawn" / "manifest.jsonl").read_text().splitlines()
    bad = {key: value for key, value in json.loads(lines[0]).items() if key != "codes"}
    other = {**json.loads(lines[0]), "codes": [[99, 0], [0, 0]]}
    broken.joinpath("manifest.jsonl").write_text("\n".join([*lines, lines[0], json.dumps(bad), json.dumps(other), "{"]))
    assert rank([str(broken), *words[1:], "--reward", "rewards_here.unsure", "--max-bad", "1"]) == 1
    said = capsys.readouterr()
    assert "4 candidates of 1 prompts" in said.out and "4 without a score, 3 bad lines" in said.out
    assert "--candidates" in said.err and "codes of another tokenizer" in said.err


def test_rewards_that_cannot_be_made_are_told_before_any_work(words, tmp_path):
    for reward, options, message in (
        ("rewards_here.missing", "{}", "has no 'missing'"),
        ("rewards_here.Sum", '{"size": 1}', "do not fit rewards_here.Sum"),
        ("rewards_here.unsure", '{"size": 1}', "is no class"),
        ("sys.version", "{}", "expected a function"),
    ):
        with pytest.raises(ValueError, match=message):
            rank([*words, "--reward", reward, "--reward-options", options])
    with pytest.raises(FileNotFoundError, match="--candidates 8"):
        rank([str(tmp_path), *words[1:], "--reward", "rewards_here.unsure"])
