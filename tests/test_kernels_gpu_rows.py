"""Products of few rows on a CUDA device: accuracy against float64, rows by themselves, kernels that start early, no host wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from emu_kernels import decode_attention, dispatch, few_rows_linear, reference, rotary_into
from emu_kernels.decode_attention import gpu as cached
from emu_kernels.rotary import gpu_into
from tests.gpu_waits import nothing_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LIMITS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMS: dict[str, tuple[tuple[int, ...], int, set[str]]] = {
    "queries, keys and values": ((1024, 256, 250), 1024, {"norm"}),
    "a gate": ((1400, 1400), 1024, {"norm", "gated"}),
    "a sum": ((1000,), 3584, {"residual"}),
    "all, odd": ((333, 333), 777, {"norm", "gated", "residual"}),
}


@pytest.fixture(autouse=True)
def _no_kernel_gave_way_to_torch() -> Iterator[None]:
    yield
    assert "few_rows_linear" not in {op for op, *_ in dispatch._failures}, "a kernel could not be built"


def inputs(form: str, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    columns, width, parts = FORMS[form]
    generator = torch.Generator("cuda").manual_seed(len(form))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    weights = [random(count, width) / width**0.5 for count in columns]
    total = columns[0] if "gated" in parts else sum(columns)
    return {
        "x": random(rows, width), "weights": weights, "norm_weight": random(width) if "norm" in parts else None,
        "gated": "gated" in parts, "residual": random(rows, total) if "residual" in parts else None,
    }  # fmt: skip


def exact(case: dict[str, Any]) -> Tensor:
    wide = {name: x.double() if isinstance(x, Tensor) else x for name, x in case.items()}
    return reference.few_rows_linear(**wide | {"weights": [weight.double() for weight in case["weights"]]})


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("rows", [1, 2, 16, 37])
@pytest.mark.parametrize("form", FORMS)
def test_values_are_close_to_float64(form: str, rows: int, dtype: torch.dtype) -> None:
    case = inputs(form, rows, dtype)
    found, expected = few_rows_linear(**case), exact(case)
    assert (found.double() - expected).norm() < LIMITS[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_alone_and_among_others(form: str, dtype: torch.dtype) -> None:
    case = inputs(form, 37, dtype)
    whole = few_rows_linear(**case)
    assert torch.equal(whole, few_rows_linear(**case))
    for row in (0, 15, 16, 36):
        rest = case["residual"]
        own = case | {"x": case["x"][row : row + 1], "residual": None if rest is None else rest[row : row + 1]}
        assert torch.equal(few_rows_linear(**own), whole[row : row + 1])


def chain(q: Tensor, cache: Tensor, angles: Tensor, monkeypatch: pytest.MonkeyPatch, early: bool) -> Tensor:
    """Kernels of which each reads what the one ahead writes, many times, recorded and replayed."""
    if not early:
        for module in (gpu_into, cached):
            monkeypatch.setattr(module, "overlaps", lambda like: False)
    begin, end = torch.zeros(4, dtype=torch.int64, device="cuda"), torch.full((4,), 300, device="cuda")
    places = torch.arange(4, device="cuda")[:, None] * 300 + 299

    def run() -> Tensor:
        out = q
        for _ in range(50):
            keys = out[:, :, :2] + out[:, :, 2:4]
            turned = rotary_into(out, keys, keys, angles, angles, cache[0], cache[1], places)
            out = 4.0 * decode_attention(turned, cache[0], cache[1], begin, end)
        return out

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    graph.replay()
    monkeypatch.undo()
    return out.clone()


def test_kernels_that_start_early_wait_for_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    like: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    q, cache, angles = (
        torch.randn(4, 1, 8, 128, **like),
        torch.randn(2, 4, 2, 300, 128, **like),
        torch.rand(4, 1, 1, 128, **like),
    )
    late, early = (chain(q, cache.clone(), angles, monkeypatch, early) for early in (False, True))
    assert torch.equal(late, early) and bool(late.isfinite().all())


def test_the_host_waits_for_nothing() -> None:
    case = inputs("a gate", 2, torch.bfloat16)
    few_rows_linear(**case)
    with nothing_waits():
        few_rows_linear(**case)
