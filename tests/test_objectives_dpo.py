"""DPO's loss and gradient are those of a plain float64 computation, on pairs that were stored as they were drawn."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from emu.data.preferences import PAIRS, RANKED, PreferenceData, RankedAnswer, RankedAnswers, RankedData, write_ranked
from emu.documents import TokenDocument
from emu.model.norm import RMSNorm
from emu.packing import pack
from emu.training.objectives import DPO
from tests.objective_toys import module_of, prompt_of


def sequences_of(emu, text, codes):
    """A prompt, and the ids of blocks of these codes."""
    template = emu.tokenizer.layout.block("image", (2, 2))
    return prompt_of(emu, text), [template.fill(torch.full((2, 2), code)) for code in codes]


def pair_document(prompt, better, other, weights):
    ids = torch.cat([prompt, better, prompt, other])
    none = torch.zeros(len(prompt))
    return TokenDocument(ids, torch.cat([none, weights, none, weights]))


def plain_log_prob(model, prompt, block, weights):
    ids = torch.cat([prompt, block])
    scores = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return (scores[len(prompt) - 1 :] * weights).sum()


@pytest.fixture
def toys(tiny_emu, monkeypatch):
    """A model in float64, one that moved away from it, and three pairs of two lengths.

    Norms have float32 statistics in float64 models too, and so gradients that depend on how tokens are packed by 1e-7; here they do not.
    """

    def exact_norm(self, x, residual=None):
        total = x if residual is None else x + residual
        normed = total * (total.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight
        return normed if residual is None else (normed, total)

    monkeypatch.setattr(RMSNorm, "forward", exact_norm)
    emu = SimpleNamespace(model=copy.deepcopy(tiny_emu.model).double(), tokenizer=tiny_emu.tokenizer)
    moved = copy.deepcopy(emu.model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = emu.tokenizer.layout.block("image", (2, 2)).free.float()
    pairs = [
        (prompt, *blocks, weights)
        for text, codes in (("a red circle", (1, 2)), ("a ball", (5, 3)), ("rolling left", (7, 0)))
        for prompt, blocks in [sequences_of(emu, text, codes)]
    ]
    return emu, moved, pairs


@pytest.mark.parametrize("next_token", [0.0, 0.7])
def test_the_gradient_equals_an_independent_one(toys, next_token):
    emu, moved, pairs = toys
    objective = DPO(beta=0.3, next_token=next_token)
    objective.setup(module_of(emu))
    batch = pack([pair_document(*pair) for pair in pairs], 100)  # several pairs in a row, in another order than here
    assert len(batch.input_ids) < len(pairs) and objective.weight(batch) == 3
    parts = objective.loss(moved, batch)
    ours = torch.autograd.grad(parts.loss, list(moved.parameters()), materialize_grads=True, allow_unused=True)

    plain = 0.0
    for prompt, better, other, weights in pairs:
        now = [plain_log_prob(moved, prompt, block, weights) for block in (better, other)]
        before = [plain_log_prob(emu.model, prompt, block, weights).detach() for block in (better, other)]
        margin = 0.3 * ((now[0] - before[0]) - (now[1] - before[1]))
        plain = plain + (-F.logsigmoid(margin) - next_token * now[0] / weights.sum()) / 3
    theirs = torch.autograd.grad(plain, list(moved.parameters()), materialize_grads=True, allow_unused=True)
    assert abs(float((parts.loss - plain).detach())) < 1e-10
    largest = max(float(one.abs().max()) for one in theirs)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-10 * largest
    assert {"preference_loss", "next_token_loss", "margin", "accuracy"} <= parts.metrics.keys()


def test_it_begins_at_log_two_and_refuses_documents_that_are_no_pairs(toys):
    emu, _, pairs = toys
    objective = DPO(next_token=0.0)
    objective.setup(module_of(emu))
    parts = objective.loss(emu.model, pack([pair_document(*pair) for pair in pairs], 80))
    assert float(parts.loss.detach()) == pytest.approx(0.6931471805599453)
    alone = TokenDocument(torch.cat(pairs[0][:2]), torch.ones(len(pairs[0][0]) + len(pairs[0][1])))
    with pytest.raises(ValueError, match=r"PreferenceData"):
        objective.loss(emu.model, pack([alone], 80))


def write(folder, emu):
    ranked = []
    for text, scores in (("a red circle", (0.9, 0.2, 0.5)), ("a ball", (1.0, 1.0, 1.0))):
        prompt, blocks = sequences_of(emu, text, range(3))
        answers = [RankedAnswer(tuple(b.tolist()), s, n) for n, (b, s) in enumerate(zip(blocks, scores, strict=True))]
        best = tuple(sorted(answers, key=lambda one: (-one.score, one.seed)))
        ranked.append(RankedAnswers(text, tuple(prompt.tolist()), best))
    return write_ranked(folder, ranked, emu.tokenizer.vocabulary, {"reward": "toys.reward"})


def data_of(kind, emu, file, **options):
    data = kind("model", str(file), **options)
    data.__dict__["tokenizer"] = emu.tokenizer
    return data


def test_ranked_answers_become_pairs_and_pairs_become_documents(tiny_emu, tmp_path):
    assert write(tmp_path, tiny_emu) == 1  # equal scores make no pair
    (source,) = data_of(PreferenceData, tiny_emu, tmp_path / "pairs.jsonl").training_sources().values()
    prompt, (best, worst, _) = sequences_of(tiny_emu, "a red circle", range(3))
    document = source.document(0, 0)
    assert len(source) == 1 and torch.equal(document.ids, torch.cat([prompt, best, prompt, worst]))
    free = tiny_emu.tokenizer.layout.block("image", (2, 2)).free.float()
    assert torch.equal(document.weights[len(prompt) : len(prompt) + len(best)], free)
    (source,) = data_of(RankedData, tiny_emu, tmp_path / "ranked.jsonl", share=0.5).training_sources().values()
    assert len(source) == 4  # two of three, of each prompt
    assert torch.equal(source.document(0, 0).ids, torch.cat([prompt, best]))


def test_broken_and_repeated_lines_are_counted_and_strange_files_refused(tiny_emu, tmp_path, capsys):
    write(tmp_path, tiny_emu)
    file = tmp_path / "pairs.jsonl"
    head, line = file.read_text().splitlines()
    file.write_text("\n".join([head, *(line.replace("0.9", f"0.9{n}") for n in range(60)), line, line, "{broken"]))
    (source,) = data_of(PreferenceData, tiny_emu, file).training_sources().values()
    assert len(source) == 61
    assert "61 records, 1 broken lines left out, 1 duplicates" in capsys.readouterr().err
    for content, message in (
        (f"{head}\n{{broken\n{line}\n", "1 broken lines of 2, the first: line 2"),
        (f"{head}\n", "holds no records; give emu rank prompts whose answers differ"),
        (f"{line}\n", "emu preference pairs 1"),
        (head.replace(PAIRS, RANKED) + "\n", "emu preference pairs 1"),
        (head.replace(tiny_emu.tokenizer.vocabulary.fingerprint, "other") + f"\n{line}\n", "of the vocabulary 'other'"),
        (f"{head}\n{line.replace('prompt_ids', 'words')}\n", "expected a list of ids"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            data_of(PreferenceData, tiny_emu, file).training_sources()
