"""What is shared on a CUDA device: keys by the queries of ranks, a vocabulary by ranks, a recorded pass by rows that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor

from emu.generation.device_passes import RecordedPasses
from emu.generation.linear import LinearBackend
from emu_kernels import attention, linear_cross_entropy, split_linear_cross_entropy
from emu_kernels.linear_cross_entropy import split
from tests.engine_toys import add_prompts, filled_cache, step_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "options", [{}, {"causal": False}, {"window": 200}, {"ids": True}, {"ids": True, "window": 77, "softcap": 5.0}]
)
def test_queries_of_a_part_attend_as_in_the_whole_row(
    options: dict[str, Any], dtype: torch.dtype, limit: float
) -> None:
    """Outputs are close to float64, gradients of keys and values add up to those of the whole row, and bits are repeatable."""
    options = dict(options)
    if options.pop("ids", False):
        options["segment_ids"] = (torch.arange(1111, device="cuda") // 333 + 1).clamp(max=3)[None].repeat(2, 1)
        options["segment_ids"][:, -50:] = 0
    inputs = [random(2, 1111, heads, 128, dtype=dtype) for heads in (8, 2, 2)]
    grad = random(2, 1111, 8, 128, dtype=dtype, seed=5)

    def run(*parts: slice) -> list[Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in inputs)
        out = [attention(q[:, own], k, v, **options, query_offset=own.start) for own in parts]
        return [torch.cat(out, 1), *torch.autograd.grad(out, (q, k, v), [grad[:, own] for own in parts])]

    exact = [x.double().requires_grad_() for x in inputs]
    whole = attention(*exact, **options)
    expected = [whole, *torch.autograd.grad(whole, exact, grad.double())]
    parts = slice(0, 400), slice(400, 1000), slice(1000, 1111)
    found, again = run(*parts), run(*parts)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert all(relative_error(ours, theirs) < limit for ours, theirs in zip(found, expected, strict=True))


def test_the_split_loss_of_one_rank_is_the_loss(tmp_path: Path) -> None:
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        inputs = [random(2100, 512).requires_grad_(), random(5003, 512).mul(0.05).requires_grad_()]
        target = torch.arange(2100, device="cuda") % 5003
        target[::7] = -100
        pairs = [
            (loss, *torch.autograd.grad(loss, inputs))
            for loss in (
                split_linear_cross_entropy(*inputs, target, first=0, z_loss=1e-3),
                linear_cross_entropy(*inputs, target, z_loss=1e-3),
            )
        ]
        assert all(relative_error(ours, theirs.double()) < 4e-3 for ours, theirs in zip(*pairs, strict=True))
        assert relative_error(pairs[0][0], pairs[1][0].double()) < 1e-5
    finally:
        distributed.destroy_process_group()


class RanksInTurn:
    """Stands for `torch.distributed` where ranks compute one after the other: what the others sent is what they sent a round before."""

    def __init__(self, size: int) -> None:
        self.sent: list[Tensor | None] = [None] * size
        self.rank = 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self, group: Any) -> int:
        return len(self.sent)

    def all_gather(self, parts: list[Tensor], part: Tensor, group: Any) -> None:
        self.sent[self.rank] = part.clone()
        for place, sent in zip(parts, self.sent, strict=True):
            place.copy_(part if sent is None else sent)

    def all_reduce(self, part: Tensor, group: Any) -> None:
        """The test adds the parts."""


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 4e-3), (torch.float16, 1e-3), (torch.float32, 2e-5)])
@pytest.mark.parametrize("options", [{}, {"weights": True, "softcap": 5.0}, {"z_loss": 1e-3, "reduction": "none"}])
def test_the_parts_of_a_split_loss_are_those_of_the_whole(
    options: dict[str, Any], dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks with unequal parts of the vocabulary, one of them without any target."""
    ranks = RanksInTurn(3)
    monkeypatch.setattr(split, "distributed", ranks)
    hidden, weight = random(1100, 512, dtype=dtype), random(9003, 512, dtype=torch.float32).mul(0.05).to(dtype)
    target = torch.arange(1100, device="cuda") * 7 % 8000
    target[::9] = -100
    options = dict(options)
    if "weights" in options:
        options["weights"] = random(1100, dtype=torch.float32).abs()
        options["weights"][5] = 0.0
    factor = torch.linspace(0.5, 2.0, 1100, device="cuda")
    bounds = (0, 5001), (5001, 8001), (8001, 9003)

    def slopes(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        total = (loss * factor).sum() if loss.ndim else loss
        return [loss.detach(), *torch.autograd.grad(total, inputs)]

    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    expected = slopes(linear_cross_entropy(*exact, target, **options), exact)
    found: list[list[Tensor]] = []
    # In the first round nobody knows yet what the others send; and only what was computed with checks has the bits of the last.
    for final in (False, True, True):
        found = []
        for ranks.rank, (first, last) in enumerate(bounds):
            inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight[first:last])]
            loss = split_linear_cross_entropy(*inputs, target, first=first, check_values=final, **options)
            found.append(slopes(loss, inputs))
    losses, d_hidden, d_weight = zip(*found, strict=True)
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert relative_error(losses[0], expected[0]) < 1e-5
    assert relative_error(sum(x.double() for x in d_hidden), expected[1]) < limit
    assert relative_error(torch.cat(d_weight), expected[2]) < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
def test_recorded_passes_follow_rows_that_come_and_go(dtype: torch.dtype, limit: float) -> None:
    """The slots of a row change between replays of the same recording: by another order, a shorter row, and a new one."""
    model = step_model("cuda", dtype, layers=2)
    with torch.no_grad():
        caches = [filled_cache(model, 4, 700, [300, 7, 120]) for _ in range(2)]
        linear = LinearBackend(model)
        passes = RecordedPasses(model, linear, caches[1])
        changes = {
            4: lambda cache: cache.keep([2, 0, 1]),
            6: lambda cache: cache.truncate([110, 290, 9]),
            8: lambda cache: (cache.keep([1, 0]), add_prompts(model, cache, [250])),
        }
        for step in range(12):
            for cache in caches:
                changes.get(step, lambda cache: None)(cache)
            ids = (torch.arange(6, device="cuda").view(3, 2) * 97 + step) % 1000
            expected, found = model.forward_block(ids, caches[0], linear), passes.run(ids)
            assert relative_error(found, expected.double()) < limit, f"step {step}"
