"""The loss over a vocabulary that ranks share equals that of the whole: two processes with parts of unequal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import Tensor

from emu_kernels import linear_cross_entropy, split_linear_cross_entropy

PARTS = [(0, 11), (11, 29)]
"""First and last (exclusive) id of each rank."""
CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "mean": (torch.float64, {}),
    "weights and z-loss": (torch.float64, {"weights": True, "z_loss": 0.1}),
    "soft cap, of each token": (torch.float64, {"softcap": 2.0, "reduction": "none", "z_loss": 0.05}),
    "unread": (torch.float64, {"weights": True, "check_values": False, "reduction": "sum"}),
    "float32": (torch.float32, {"weights": True}),
    "bfloat16": (torch.bfloat16, {}),
    "all ignored": (torch.float64, {"ignored": True}),
}
ERRORS = {
    "target without an owner": ({"target": 29}, "target has the id 29, which is not in exactly one"),
    "negative target": ({"target": -5}, "target has the id -5"),
    "negative weight": ({"weight": -1.0}, "weights must be finite and not negative"),
}


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """hidden (13, 5), weight (29, 5), target (13,) and options."""
    dtype, options = CASES.get(name, (torch.float64, {}))
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (13, 29))
    target = torch.randint(0, 29, (13,), generator=generator)
    target[3], target[4], target[5] = -100, 10, 11
    options = dict(options)
    if options.pop("ignored", False):
        target[:] = -100
    if options.get("weights"):
        options["weights"] = torch.rand(13, generator=generator)
        options["weights"][7] = 0.0
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target, options


def total(loss: Tensor) -> Tensor:
    """A number to differentiate, in which tokens of a loss for each have factors of their own."""
    return (loss * torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum()


def error_of(name: str, rank: int) -> str:
    changes, _ = ERRORS[name]
    hidden, weight, target, options = inputs("mean")
    target[8] = changes.get("target", target[8])
    if "weight" in changes:
        options["weights"] = torch.ones(13)
        options["weights"][8] = changes["weight"]
    first, last = PARTS[rank]
    try:
        split_linear_cross_entropy(hidden, weight[first:last], target, first=first, **options)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    first, last = PARTS[rank]
    for name in CASES:
        hidden, weight, target, options = inputs(name)
        part = weight.detach()[first:last].clone().requires_grad_()
        loss = split_linear_cross_entropy(hidden, part, target, first=first, **options)
        found[name] = loss.detach(), *torch.autograd.grad(total(loss), (hidden, part))
    found |= {name: error_of(name, rank) for name in ERRORS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes finds for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(run_rank, args=(str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_whole(ranks: list[dict[str, Any]], name: str) -> None:
    hidden, weight, target, options = inputs(name)
    expected = linear_cross_entropy(hidden, weight, target, **options)
    d_hidden, d_weight = torch.autograd.grad(total(expected), (hidden, weight))
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[hidden.dtype]
    for (first, last), results in zip(PARTS, ranks, strict=True):
        for ours, theirs in zip(results[name], (expected, d_hidden, d_weight[first:last]), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_ranks_get_the_same_bits(ranks: list[dict[str, Any]], name: str) -> None:
    assert all(torch.equal(one, two) for one, two in zip(ranks[0][name][:2], ranks[1][name][:2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_bad_values_are_named_on_all_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    """None is left waiting for another."""
    assert all(ERRORS[name][1] in results[name] for results in ranks)


def test_without_a_process_group_it_says_what_to_do() -> None:
    hidden, weight, target, _ = inputs("mean")
    with pytest.raises(ValueError, match="there is no process group; call torch.distributed.init_process_group"):
        split_linear_cross_entropy(hidden, weight, target, first=0)
