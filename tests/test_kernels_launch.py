"""Kernels start on the device of their tensors, whichever is current, and at one place."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import emu_kernels
from emu.model.attention import attend_packed
from emu_kernels import attention, dispatch, document_bounds

PACKAGE = Path(emu_kernels.__file__).parent
MODULES = (
    "attention.quarantine", "attention.gpu", "attention.gpu_backward", "decode_attention.gpu", "few_rows_linear.gpu", "guided_sample.gpu",
    "linear_cross_entropy.gpu", "nearest_code.gpu", "nearest_code.gpu_wide", "rms_norm.gpu", "rotary.gpu",
    "rotary.gpu_into", "swiglu.gpu",
)  # fmt: skip


def started_kernels(tree: ast.AST) -> list[int]:
    """Lines with a call of the form `kernel[grid](...)`."""
    return [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]


def test_no_kernel_is_started_past_the_launcher() -> None:
    found = {file: started_kernels(ast.parse(file.read_text())) for file in PACKAGE.rglob("*.py")}
    assert [file for file, lines in found.items() if lines] == [PACKAGE / "dispatch.py"]
    assert len(found[PACKAGE / "dispatch.py"]) == 1


def test_the_guard_takes_the_tensors_own_gpu() -> None:
    with FakeTensorMode():
        assert dispatch.device_of(torch.empty(3, device="cuda:1")).idx == 1  # type: ignore[attr-defined]
    with dispatch.device_of(torch.empty(3)):
        pass  # nothing to do on the CPU


class Launches:
    """Stands for a kernel: notes the device that is current when it starts."""

    def __init__(self, name: str, guarded: list[torch.device], started: dict[str, list[torch.device | None]]) -> None:
        self.name, self.guarded, self.started = name, guarded, started

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*arguments: Any, **options: Any) -> None:
            self.started.setdefault(self.name, []).append(self.guarded[-1] if self.guarded else None)

        return start


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.device | None]]:
    """Which device was made current for each start of each kernel."""
    pytest.importorskip("triton")
    guarded: list[torch.device] = []
    found: dict[str, list[torch.device | None]] = {}

    @contextmanager
    def guard(tensor: Tensor) -> Iterator[None]:
        guarded.append(tensor.device)
        yield
        guarded.pop()

    monkeypatch.setattr(dispatch, "device_of", guard)
    for name in MODULES:
        module = importlib.import_module(f"emu_kernels.{name}")
        for kernel in [attribute for attribute in vars(module) if attribute.endswith("_kernel")]:
            monkeypatch.setattr(module, kernel, Launches(kernel, guarded, found))
    return found


def test_every_kernel_starts_under_the_guard(started: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data stand for those of a GPU: all kernels of all ops, and each at least once."""
    from emu_kernels.attention.gpu import attention_triton
    from emu_kernels.attention.gpu_backward import attention_backward_triton
    from emu_kernels.decode_attention.gpu import decode_attention_triton
    from emu_kernels.guided_sample.gpu import guided_sample_triton
    from emu_kernels.linear_cross_entropy import gpu as loss
    from emu_kernels.nearest_code.gpu import nearest_code_triton

    with torch.device("meta"):
        q, k = (torch.empty(2, 40, heads, 16, dtype=torch.bfloat16) for heads in (4, 2))
        ids = torch.ones(2, 40, dtype=torch.int64)
        out, lse = attention_triton(q, k, k, ids, None, True, 0, 0.0, 0.3)
        attention_backward_triton(out, q, k, k, out, lse, ids, None, True, 0, 0.0, 0.3)
        key = [torch.ones(4, dtype=torch.int64)] * 3
        guided_sample_triton(torch.empty(2, 4, 8192), 1.0, 1.0, 1.0, 5, 0.9, *key, 0)
        nearest_code_triton(torch.empty(20, 4), torch.empty(30, 4))
        nearest_code_triton(torch.empty(20, 64), torch.empty(30, 64))
        cache, ends = torch.empty(2, 2, 64, 16, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)
        decode_attention_triton(q, cache, cache, ends, ends, 0.3)
        _start_norm_rotation_and_gate(q, k)
        hidden, weight = (torch.empty(rows, 64, dtype=torch.bfloat16) for rows in (32, 512))
        monkeypatch.setattr(loss, "token_groups", lambda *a, **k: [loss.Group(None, 32, 0, 512)])
        target = torch.ones(32, dtype=torch.int64)
        loss.forward_triton(hidden, weight, target, None, 0, 512, None, 0.0, -100, 0.0, "mean", False, True, True)
    kernels = {name for file in PACKAGE.rglob("*.py") for name in _kernels_of(file)}
    assert set(started) == kernels
    assert {device for devices in started.values() for device in devices} == {torch.device("meta")}


def _start_norm_rotation_and_gate(q: Tensor, k: Tensor) -> None:
    from emu_kernels.few_rows_linear.gpu import few_rows_linear_triton
    from emu_kernels.rms_norm.gpu import rms_norm_backward_triton, rms_norm_triton
    from emu_kernels.rotary.gpu import norm_rotary_backward_triton, norm_rotary_triton
    from emu_kernels.rotary.gpu_into import rotary_into_triton
    from emu_kernels.swiglu.gpu import swiglu_backward_triton, swiglu_triton

    weight, angle, inverse = torch.empty(16), torch.empty(1, 40, 1, 16), torch.empty(2, 40, 4, 1)
    cache, places = torch.empty(2, 2, 50, 16), torch.empty(2, 40, dtype=torch.int64)
    rms_norm_triton(q, weight, 1e-5)
    rms_norm_backward_triton(q, q, weight, inverse)
    norm_rotary_triton(q, weight, angle, angle, 1e-5)
    norm_rotary_backward_triton(q, q, weight, inverse, angle, angle)
    rotary_into_triton(q, k, k, angle, angle, cache, cache, places, weight, weight, 1e-5)
    few_rows_linear_triton(q, [torch.empty(24, 16)], weight, 1e-5, False, None)
    swiglu_triton(q, q)
    swiglu_backward_triton(q, q, q)


def _odd_rows(dtype: torch.dtype = torch.float16) -> tuple[Tensor, ...]:
    """q, k, v and grad whose heads of 12 features no tensor descriptor takes."""
    return tuple(torch.randn(1, 40, heads, 12).to(dtype) for heads in (4, 2, 2, 4))


def test_the_backward_lays_out_its_tensors_once_for_all_kernels(started: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from emu_kernels.attention.gpu_backward import attention_backward_triton

    copies = []
    pad = torch.nn.functional.pad
    monkeypatch.setattr(torch.nn.functional, "pad", lambda x, *a, **k: copies.append(x) or pad(x, *a, **k))
    q, k, v, grad = _odd_rows()
    attention_backward_triton(grad, q, k, v, q, torch.zeros(1, 4, 40), None, None, True, 0, 0.0, 0.3)
    assert set(started) == {"row_kernel", "key_kernel", "query_kernel"}
    assert len(copies) == 4


def test_bounds_that_are_given_are_not_computed_again(started: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from emu_kernels.attention import gpu, gpu_backward

    q, k, v, grad = _odd_rows(torch.float32)
    documents = torch.ones(1, 40, dtype=torch.int64), None, True, 0, 0.0, 0.3
    bounds = document_bounds(40, documents[0])
    for module in (gpu, gpu_backward):
        monkeypatch.delattr(module, "document_bounds")
    gpu.attention_triton(q, k, v, *documents, bounds)
    gpu_backward.attention_backward_triton(grad, q, k, v, q, torch.zeros(1, 4, 40), *documents, bounds)
    assert {"forward_kernel", "key_kernel", "query_kernel"} <= set(started)


class Calls(TorchDispatchMode):
    """Notes the arguments of each call of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, list[tuple]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.arguments.setdefault(func.overloadpacket.__name__, []).append(args)
        return func(*args, **(kwargs or {}))


def test_layers_of_a_model_compute_the_bounds_of_a_batch_once() -> None:
    """Three layers on a GPU, by shapes alone."""
    with FakeTensorMode(), torch.no_grad():
        ids = torch.ones(2, 40, dtype=torch.int64, device="cuda")
        q, k = (torch.empty(2, 40, heads, 16, device="cuda") for heads in (4, 2))
        with Calls() as calls:
            attend = attend_packed(ids)
            for layer in range(3):
                q = attend(q, k, k, layer)
    assert len(calls.arguments["attention"]) == 3
    assert len(calls.arguments["cummax"]) == len(calls.arguments["cummin"]) == 1


def test_the_backward_takes_the_bounds_of_the_forward() -> None:
    q, k, v, grad = (x.requires_grad_() for x in _odd_rows(torch.float32))
    ids = torch.ones(1, 40, dtype=torch.int64)
    with Calls() as calls:
        out = attention(q, k, v, segment_ids=ids, bounds=document_bounds(40, ids))
        torch.autograd.grad(out, (q, k, v), grad.detach())
    (forward,), (backward,) = calls.arguments["attention"], calls.arguments["attention_backward"]
    assert backward[-1].shape == (1, 40, 2) and backward[-1].data_ptr() == forward[-1].data_ptr()


def _kernels_of(file: Path) -> list[str]:
    """Names of the kernels that a file defines."""
    tree = ast.parse(file.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")]
    return [node.name for node in functions if "triton.jit" in map(ast.unparse, node.decorator_list)]
