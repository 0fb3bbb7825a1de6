"""GRPO under `emu fit`: what it learns from, what it leaves out and counts, and what it refuses."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from emu import Emu
from emu.model import EmuConfig, EmuForCausalLM
from emu.rewards import Candidate, score
from emu.training.blocks import checkpoint_blocks
from emu.training.curves import read_curves
from emu.training.lora.adapters import PROJECTIONS, add_adapters
from emu.training.meters import StepMeter
from emu.training.objectives.advantages import group_advantages, token_credit
from emu.training.objectives.frozen_reference import FrozenReference, without_dropout
from tests.objective_toys import batch_of, grpo, module_of, prompt_of
from tests.training_toys import run, same

REWARD = """
def few_zeros(candidates):
    return [float((one.codes > 7).sum()) for one in candidates]
"""


def high_codes(candidates):
    return [float((one.codes > 7).sum()) for one in candidates]


def test_advantages_are_told_apart_from_the_others_of_the_group():
    rewards = torch.tensor([[1.0, 0, 0, 1], [2, 2, 2, 2], [1, torch.nan, 0, 0]], dtype=torch.float64)
    found = group_advantages(rewards, "leave_one_out", divide_by_deviation=False)
    assert found.is_constant.tolist() == [False, True, False] and found.is_unscored.tolist() == [False, False, True]
    torch.testing.assert_close(found.values[0], torch.tensor([2, -2, -2, 2], dtype=torch.float64) / 3)
    assert not found.values[1:].any()
    mean = group_advantages(rewards, "mean", divide_by_deviation=True).values[0]
    torch.testing.assert_close(mean, torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=torch.float64) / rewards[0].std())


def test_contrast_shares_the_advantage_of_a_sequence_out_among_its_codes():
    advantages, contrast = torch.tensor([2.0, -1.0, 1.0]), torch.tensor([[1.0, -3.0], [0.5, 0.5], [0.0, 0.0]])
    shared = token_credit(advantages, contrast, "contrast")
    torch.testing.assert_close(shared, torch.tensor([[1.0, 3.0], [-1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(shared.mean(1), advantages)


def test_groups_without_a_difference_or_a_score_are_left_out_and_counted(tiny_emu):
    emu = copy.deepcopy(tiny_emu)

    def reward(candidates):
        told = {"a ball": 1.0, "rolling left": float("nan")}
        return [told.get(one.prompt, float(one.codes.sum())) for one in candidates]

    objective = grpo(emu, reward, group_size=4)
    prompts = [prompt_of(emu, text) for text in ("a ball", "a red circle", "rolling left", "a ball")]
    parts = objective.loss(emu.model, batch_of(prompts))
    told = {name: float(value) for name, value in parts.metrics.items()}
    assert (told["constant_groups"], told["unscored_groups"]) == (0.5, 0.25)
    assert told["deviation"] > 0 and 0.25 <= told["distinct"] <= 1 and told["entropy"] > 0
    torch.manual_seed(5)
    all_four = objective.loss(emu.model, batch_of(prompts)).loss
    gradient = torch.autograd.grad(all_four, emu.model.lm_head.weight)[0]
    assert gradient.abs().max() > 0

    silent = grpo(emu, lambda candidates: [float("nan")] * len(candidates), group_size=2)
    meter, share = StepMeter((), ()), torch.tensor(1.0)
    for reward in (3.0, 5.0):
        meter.add_metrics({"reward": torch.tensor(reward), "unscored_groups": torch.tensor(0.0)}, share)
    meter.add_metrics(silent.loss(emu.model, batch_of(prompts[:1])).metrics, share)
    assert meter.row()["reward"] == 4 and meter.row()["unscored_groups"] == pytest.approx(1 / 3)
    for _ in range(8):
        silent.loss(emu.model, batch_of(prompts[:1])).loss.backward()  # a gradient of zeros, not an error
    with pytest.raises(RuntimeError, match="no score in 10 steps"):
        silent.loss(emu.model, batch_of(prompts[:1]))


def test_passes_of_few_answers_give_the_gradient_of_one(tiny_emu):
    gradients = []
    for passes in (256, 3):
        emu = copy.deepcopy(tiny_emu)
        objective = grpo(
            emu, high_codes, group_size=4, kl=0.1, entropy=0.01, credit="contrast", answers_per_pass=passes
        )
        torch.manual_seed(1)
        objective.loss(emu.model, batch_of([prompt_of(emu, text) for text in ("a ball", "a circle")])).loss.backward()
        gradients.append([one.grad for one in emu.model.parameters()])
    largest = max(float(one.abs().max()) for one in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("number", [1, 2])
def test_each_process_goes_on_with_what_it_held_itself(tiny_emu, monkeypatch, number):
    emu = copy.deepcopy(tiny_emu)
    ranks = [grpo(emu, high_codes, group_size=4, updates=3) for _ in range(2)]
    for objective, text in zip(ranks, ("a ball", "a red circle"), strict=True):
        objective.loss(emu.model, batch_of([prompt_of(emu, text)]))
    held = [objective.state_dict()["ranks"][0] for objective in ranks]
    assert not same(held[0], held[1])
    gathered = lambda found, own: found.__setitem__(slice(None), held)  # noqa: E731
    fakes = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "get_rank": lambda: 1}
    for name, fake in (fakes | {"all_gather_object": gathered}).items():
        monkeypatch.setattr(f"emu.training.objectives.grpo.dist.{name}", fake)
    saved = ranks[0].state_dict()
    assert same(saved["ranks"], held)
    monkeypatch.setattr("emu.training.objectives.grpo.dist.get_world_size", lambda: number)
    again = grpo(emu, high_codes, group_size=4, updates=3)
    again.load_state_dict(saved)
    assert (again._used, len(again._held)) == ((1, 1) if number == 2 else (3, 0))
    if number == 2:
        assert torch.equal(again._held[0].blocks.codes, ranks[1]._held[0].blocks.codes)


def test_a_copy_of_a_model_that_is_split_is_refused(tiny_emu, monkeypatch):
    monkeypatch.setattr("emu.training.objectives.frozen_reference.is_sharded", lambda model: True)
    with pytest.raises(ValueError, match=r"splits the model.*objective\.reference, or use ddp"):
        FrozenReference(module_of(tiny_emu))


def test_a_reference_of_another_vocabulary_is_refused(tiny_emu, tmp_path):
    other = EmuConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    EmuForCausalLM(other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of the vocabulary None with 40 ids"):
        FrozenReference(module_of(tiny_emu), str(tmp_path))


def test_the_reference_is_a_copy_or_the_model_without_its_adapters(tiny_emu):
    pytest.importorskip("peft")
    model = copy.deepcopy(tiny_emu.model)
    ids = torch.arange(12)[None]
    start = model(ids).logits
    whole = FrozenReference(module_of(tiny_emu, model))
    add_adapters(model, 4, 8.0, 0.5, PROJECTIONS, mixed=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted = FrozenReference(module_of(tiny_emu, model.train()))
    assert adapted._copy is None and not torch.allclose(model.eval()(ids).logits, start, atol=1e-3)
    for reference in (whole, adapted):
        with reference.model(model.train()) as frozen:
            torch.testing.assert_close(frozen(ids).logits, start)
    assert model.training and not torch.allclose(model.eval()(ids).logits, start, atol=1e-3)


@pytest.mark.parametrize("kept", ["none", "full"])
def test_dropout_is_off_and_activations_are_computed_again(tiny_emu, kept):
    config = copy.deepcopy(tiny_emu.model.config)
    config.residual_dropout = config.embedding_dropout = 0.5
    model = EmuForCausalLM(config).train()
    checkpoint_blocks(model, kept)
    passes = []
    hook = model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.arange(12)[None]
    with without_dropout(model):
        first, second = model(ids).logits, model(ids).logits
        first.sum().backward()
    hook.remove()
    assert torch.equal(first, second) and len(passes) == (3 if kept == "full" else 2)
    assert model.training and not torch.equal(model(ids).logits, model(ids).logits)
    torch.testing.assert_close(model.eval()(ids).logits, first)


@pytest.mark.parametrize("kept", ["none", "full", "selective"])
@pytest.mark.parametrize("passes", [256, 3])
def test_the_backward_pass_computes_again_without_dropout_too(tiny_emu, kept, passes):
    config = copy.deepcopy(tiny_emu.model.config)
    config.residual_dropout = config.embedding_dropout = 0.5
    gradients = []
    for checkpointing, size in (("none", 256), (kept, passes)):
        emu = copy.copy(tiny_emu)
        emu.model = EmuForCausalLM(config).train()
        emu.model.load_state_dict(tiny_emu.model.state_dict())
        checkpoint_blocks(emu.model, checkpointing)
        objective = grpo(emu, high_codes, group_size=4, answers_per_pass=size)
        torch.manual_seed(1)
        objective.loss(emu.model, batch_of([prompt_of(emu, "a ball")])).loss.backward()
        gradients.append([one.grad for one in emu.model.parameters()])
        assert emu.model.training and emu.model.model.layers[0].dropout == 0.5
    largest = max(float(one.abs().max()) for one in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=0)


def test_adapters_with_dropout_learn_what_their_passes_without_it_say(tiny_emu):
    pytest.importorskip("peft")
    gradients = []
    for dropout, checkpointing in ((0.0, "none"), (0.5, "full")):
        model = copy.deepcopy(tiny_emu.model)
        torch.manual_seed(2)
        add_adapters(model, 4, 8.0, dropout, PROJECTIONS, mixed=False)
        checkpoint_blocks(model.train(), checkpointing)
        with without_dropout(model):
            scores = model(torch.arange(12)[None]).logits
        scores.square().sum().backward()
        gradients.append([one.grad for one in model.parameters() if one.requires_grad])
    assert any(one.any() for one in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_reward_that_answers_wrongly_is_told():
    candidates = [Candidate(("a", "b"), None, torch.zeros(2, 2), "image")] * 2
    assert candidates[0].prompt == "a b"
    assert score(lambda some: [1, float("inf")], candidates).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="3 scores for 2 candidates"):
        score(lambda some: [1, 2, 3], candidates)
    with pytest.raises(ValueError, match="expected one number for each"):
        score(lambda some: ["good", "bad"], candidates)


@pytest.fixture
def recipe(tiny_emu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_emu.save_pretrained(tmp_path / "start")
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "prompts.txt").write_text("a red circle\na ball\n\na ball\nrolling left\n")
    (tmp_path / "grpo.yaml").write_text(
        """
seed_everything: 0
trainer: {max_steps: 4, accelerator: cpu, devices: 1, log_every_n_steps: 1, enable_progress_bar: false, default_root_dir: run}
model:
  pretrained: start
  optimizer: {lr: 1.0e-2, schedule: constant}
  objective:
    class_path: emu.training.objectives.GRPO
    init_args:
      reward: my_reward.few_zeros
      group_size: 4
      updates: 2
      sampling: {guidance_scale: 2.0, top_k: 6}
data:
  class_path: emu.data.model_data.PromptData
  init_args: {model: "${model.pretrained}", prompts: prompts.txt, size: [8, 8], documents_per_step: 3, row_length: 32}
checkpoint: {every_n_steps: 1, keep: 9}
"""
    )
    yield "grpo.yaml"
    sys.modules.pop("my_reward", None)


@pytest.mark.slow
def test_it_trains_from_a_recipe_resumes_bitwise_and_exports_a_model(recipe, tmp_path):
    whole = run(recipe)
    rows = read_curves(tmp_path / "run" / "metrics.csv")
    names = ("reward", "deviation", "constant_groups", "unscored_groups", "distinct", "kl", "entropy", "clipped")
    assert {f"train/{name}" for name in names} <= rows[4].keys()
    assert rows[1]["train/reward"] == rows[2]["train/reward"] != rows[3]["train/reward"]  # two updates of a drawing
    halves = (recipe, "--trainer.default_root_dir", "halves")
    run(*halves, "--trainer.max_steps", 3)
    resumed = run(*halves, "--ckpt_path", "last")
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    drawn = Emu.from_pretrained(tmp_path / "run" / "model").generate_images("a ball", seed=1)[0]
    assert drawn.codes.shape == (2, 2)


def test_what_cannot_work_is_said_before_the_first_step(recipe):
    objective = ("group_size", 1, "clip", -1, "sampling.temperature", 0)
    words = [f"--model.objective.{name}={value}" for name, value in zip(objective[::2], objective[1::2], strict=True)]
    with pytest.raises(ValueError) as error:
        run(recipe, *words, "--data.size", "[9, 8]")
    told = ("group_size is 1", "clip is -1", "temperature is 0", "multiples of the tokenizer's factor 4")
    assert all(part in str(error.value) for part in told)
    with pytest.raises(ValueError, match=r"[mM]y_reward|nothing"):
        run(recipe, "--model.objective.reward", "my_reward.nothing")
