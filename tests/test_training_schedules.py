import math

import pytest
import torch
from torch import nn

from emu.training.optimizers import build_optimizer, parameter_groups
from emu_tokenizers.training.schedules import OptimizerOptions, RateFactors, rate_factor
from tests.training_toys import run, write_recipe


def rates(**options):
    return [rate_factor(step, OptimizerOptions(**options), total_steps=20) for step in range(25)]


def test_the_rate_rises_over_warm_up_and_falls_to_its_final_fraction():
    for schedule in ("cosine", "wsd"):
        curve = rates(schedule=schedule, warmup_steps=4, final=0.2)
        assert curve[:4] == [0.25, 0.5, 0.75, 1.0]
        assert curve[19] == pytest.approx(0.2) and curve[24] == pytest.approx(0.2)
        assert all(later <= earlier for earlier, later in zip(curve[4:], curve[5:], strict=False))


def test_wsd_is_constant_until_its_last_part():
    curve = rates(schedule="wsd", decay_steps=5, final=0.0)
    assert curve[:15] == [1.0] * 15
    assert curve[15:20] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_constant_stays():
    assert rates(schedule="constant", warmup_steps=2) == [0.5] + [1.0] * 24


def test_only_matrices_that_are_no_embeddings_decay():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 5, bias=False))
    decayed, rest = parameter_groups(model, 0.3)
    assert [p.shape for p in decayed["params"]] == [(3, 4), (5, 3)] and decayed["weight_decay"] == 0.3
    assert len(rest["params"]) == 4 and rest["weight_decay"] == 0.0
    model[3].weight = model[0].weight
    assert len(parameter_groups(model, 0.3)[0]["params"]) == 1
    model[1].requires_grad_(False)
    assert len(parameter_groups(model, 0.3)) == 1


def test_a_step_without_gradients_changes_nothing():
    model = nn.Linear(3, 2)
    optimizer, _ = build_optimizer(model, OptimizerOptions(lr=0.1), 10)
    before = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight, before) and not optimizer.state


def test_every_wrong_number_is_reported():
    problems = OptimizerOptions(lr=-1, beta2=1.0, warmup_steps=-1, final=2).problems(max_steps=-1)
    assert [problem.split()[0] for problem in problems] == [
        "optimizer.lr",
        "optimizer.beta2",
        "optimizer.warmup_steps",
        "optimizer.final",
        "schedule",
    ]
    assert OptimizerOptions().problems(max_steps=10) == []


def test_a_full_cosine_falls_from_the_first_step_under_its_warm_up():
    curve = rates(schedule="full_cosine", warmup_steps=4, final=0.2)
    whole = [0.6 + 0.4 * math.cos(math.pi * min(step / 20, 1)) for step in range(25)]
    assert curve == pytest.approx([min(1, (step + 1) / 4) * value for step, value in enumerate(whole)])


def test_matrices_may_have_a_rate_of_their_own():
    assert "rate of Muon" in OptimizerOptions(matrix_lr=1e-2).problems(10)[0]
    options = OptimizerOptions(name="muon", lr=1e-3, matrix_lr=1e-2, schedule="constant")
    optimizer, _ = build_optimizer(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), options, 10)
    assert {group["matrices"]: group["lr"] for group in optimizer.param_groups} == {True: 1e-2, False: 1e-3}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_patterns_give_parameters_their_own_rate_and_decay_and_the_schedule_keeps_their_ratio(name):
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "last": nn.Linear(4, 4)})
    factors = {"first.*": RateFactors(lr=0.5, weight_decay=0.0), "*.bias": RateFactors(lr=2.0)}
    options = OptimizerOptions(
        name=name, lr=0.1, weight_decay=0.3, schedule="wsd", decay_steps=1, final=0.1, groups=factors
    )
    optimizer, schedule = build_optimizer(model, options, 2)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(groups) == 4
    wanted = {
        "first.weight": (0.05, 0.0),
        "first.bias": (0.05, 0.0),
        "last.weight": (0.1, 0.3),
        "last.bias": (0.2, 0.0),
    }
    for factor in (1.0, 0.1):
        for parameter, (rate, decay) in wanted.items():
            group = groups[id(model.get_parameter(parameter))]
            assert group["lr"] == pytest.approx(rate * factor) and group["weight_decay"] == pytest.approx(decay)
        optimizer.step()
        schedule.step()


def test_a_pattern_that_matches_nothing_is_refused():
    options = OptimizerOptions(
        groups={"*.weight": RateFactors(lr=0.5), "head.*": RateFactors(), "0.weight": RateFactors()}
    )
    with pytest.raises(ValueError, match=r"'head\.\*'.*names are such as weight, bias.*'0\.weight'"):
        build_optimizer(nn.Linear(2, 2), options, 10)


def test_a_pattern_of_a_recipe_that_matches_nothing_is_named_before_any_work(tmp_path):
    groups = '{"*.layers.0.*": {"lr": 0.5}, "*.mlp.up.*": {"lr": -1}}'
    with pytest.raises(ValueError, match=r"(?s)lr is -1.*no parameter is matched by '\*\.mlp\.up\.\*'"):
        run(write_recipe(tmp_path), "--model.optimizer.groups", groups)
