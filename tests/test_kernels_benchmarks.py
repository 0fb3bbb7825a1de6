"""What the benchmarks of the kernels measure: a GPU's own time with a cold cache, against the best products that there are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of the folder by its name; the scripts import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module

    return load


class Event:
    """Stands for a CUDA event: notes when it is recorded."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def record(self) -> None:
        self.done.append("event")

    def elapsed_time(self, other: Event) -> float:
        return 2.0


def test_a_gpu_is_timed_by_its_events_with_a_cold_cache(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = benchmark_module("harness")
    done: list[str] = []
    buffer = type("Buffer", (), {"zero_": lambda self: done.append("flush")})()
    monkeypatch.setattr(harness, "flush_buffer", lambda: buffer, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(done))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("head start"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    elapsed, _ = harness.seconds(lambda: done.append("call"), "cuda")
    assert done == ["flush", "wait", "head start", "event", "call", "event", "wait"]
    assert elapsed == 2e-3


def test_the_floor_of_the_loss_takes_aligned_logits_and_sums_in_float32(
    benchmark_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark_module("kernels_linear_cross_entropy")
    written: list[torch.Tensor] = []
    product = torch.mm

    def mm(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None, out_dtype: Any = None) -> Any:
        if out is None:
            return product(left, right)
        written.append(out)
        return out.copy_(product(left, right))

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(
        torch, "addmm", lambda total, left, right, out, **options: total.add_(left.float() @ right.float())
    )
    hidden, weight = torch.randn(50, 24).bfloat16(), torch.randn(301, 24).bfloat16()
    script.three_products(hidden, weight, 20)()
    logits, d_weight = written[0], written[1]
    assert logits.shape == (20, 301) and logits.stride(0) * logits.element_size() % 512 == 0
    assert logits.dtype == torch.bfloat16 and d_weight.dtype == torch.float32
    expected = (hidden.double() @ weight.double().T).T @ hidden.double()
    assert (d_weight - expected).norm() < 1e-2 * expected.norm()


def test_times_are_held_against_the_lowest_floor(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = benchmark_module("harness")
    times = {"ours": 4.0, "slow floor": 3.0, "floor": 1.0}
    monkeypatch.setattr(harness, "seconds", lambda name, device: (times[name], times[name]))
    monkeypatch.setattr(harness, "peak_bytes", lambda function, device: 0)
    contenders = [harness.Contender(name, name, "floor" in name) for name in times]
    rows = harness.measure("op", "case", contenders, "cpu", 3)
    assert [row.percent_of_floor for row in rows] == [25.0, 33.3, 100.0]
