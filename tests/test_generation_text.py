"""Text generation: grammar, ends, batches of unequal length."""

import pytest
import torch

from emu.generation import Engine
from emu.layouts import Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(20, {"vision": 24})
CONTROLS = VOCABULARY.controls


def engine_of(end_bias: float = 0.0, **options) -> Engine:
    """`end_bias` makes the end token likely: the head's row of it is scaled up."""
    torch.manual_seed(5)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rope_theta": 100.0,
    }
    model = EmuForCausalLM(EmuConfig(vocab_size=VOCABULARY.size, initializer_range=0.3, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight[CONTROLS["eos"]] *= 1 + end_bias
    return Engine(model, Emu3Layout(VOCABULARY), **options)


def prompts():
    return [torch.tensor([CONTROLS["bos"], *row]) for row in ([1, 2, 3, 4, 5, 6], [], [7, 8], [9] * 11)]


@torch.no_grad()
def plain_greedy(model, ids, limit):
    written = []
    for _ in range(limit):
        logits = model(torch.cat([ids, torch.tensor(written, dtype=torch.int64)])[None]).logits[0, -1]
        allowed = [*range(20), CONTROLS["eos"]]
        token = allowed[int(logits[allowed].argmax())]
        if token == CONTROLS["eos"]:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("end_bias", [0.0, 0.5, 3.0])
def test_greedy_text_equals_a_plain_loop(end_bias):
    engine = engine_of(end_bias)
    found = engine.generate_text(prompts(), max_new_tokens=20, temperature=0)
    expected = [plain_greedy(engine.model, ids, 20) for ids in prompts()]
    assert [row.tolist() for row in found] == expected
    longest = max(map(len, expected))
    assert engine.last_stats.passes == min(longest + 1, 20)  # it stops with the last sequence
    if end_bias:
        assert len({len(row) for row in expected}) > 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_sampled_text_does_not_depend_on_the_batch(deterministic):
    engine = engine_of(1.0, deterministic=deterministic)
    together = engine.generate_text(prompts(), max_new_tokens=15, seed=[4, 5, 6, 7])
    for row, ids in enumerate(prompts()):
        assert torch.equal(engine.generate_text([ids], max_new_tokens=15, seed=4 + row)[0], together[row])
    assert all(int(row.min()) >= 0 and int(row.max()) < 20 for row in together if len(row))


def test_streams_of_a_prompt_differ():
    found = engine_of().generate_text(prompts()[:1], max_new_tokens=12, streams=3)
    assert len({tuple(row.tolist()) for row in found}) == 3


@pytest.mark.parametrize(
    "arguments",
    [{"max_new_tokens": 0}, {"temperature": float("inf")}, {"prompt_ids": [torch.tensor([], dtype=torch.int64)]}],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        engine_of().generate_text(**{"prompt_ids": prompts(), **arguments})
