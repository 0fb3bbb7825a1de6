"""Which implementation an op takes on which device, what happens when Triton cannot build a kernel, and one graph for all lengths."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from emu_kernels import (
    attention,
    choices,
    dispatch,
    few_rows_linear,
    guided_sample,
    linear_cross_entropy,
    nearest_code,
    rms_norm,
    rotary,
    swiglu,
)
from emu_kernels.attention import op as attention_ops
from emu_kernels.attention.op import torch_attention
from emu_kernels.decode_attention import op as decode_ops
from emu_kernels.dispatch import OPS, choose, triton_or_torch
from emu_kernels.few_rows_linear import op as product_ops
from emu_kernels.guided_sample import op as sampler_ops
from emu_kernels.linear_cross_entropy import op as loss_ops
from emu_kernels.nearest_code import op as search_ops
from emu_kernels.rms_norm import op as norm_ops
from emu_kernels.rotary import op as rotary_ops
from emu_kernels.swiglu import op as gate_ops

CARD = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_failures", {})
    monkeypatch.setattr(dispatch, "_warned", set())
    dispatch._survey.cache_clear()
    yield
    dispatch._survey.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool = True) -> None:
    """A machine with GPUs of a compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Card")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(dispatch, "TRITON_FOUND", triton)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:7", "mps", "xpu", "meta"])
def test_choices_answers_for_every_device_and_raises_nothing(device: str) -> None:
    found = choices(torch.device(device))
    assert tuple(found) == OPS
    assert all(path in ("triton", "torch") and reason for path, reason in found.values())


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_other_devices_take_torch(device: str) -> None:
    assert {path for path, _ in choices(torch.device(device)).values()} == {"torch"}


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)])
def test_nvidia_gpus_from_ampere_on_take_triton(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    pretend(monkeypatch, capability)
    for path, reason in choices(CARD).values():
        assert path == "triton"
        assert ".".join(map(str, capability)) in reason


def test_older_gpus_take_torch_and_the_reason_names_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 5))
    for path, reason in choices(CARD).values():
        assert path == "torch" and "7.5" in reason and "8.0" in reason


def test_amd_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert all(path == "torch" and "AMD" in reason for path, reason in choices(CARD).values())


def test_dtypes_without_kernels_take_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    assert choose("attention", CARD, torch.float64).path == "torch"
    assert choose("linear_cross_entropy", CARD, torch.float32).path == "torch"
    assert choose("linear_cross_entropy", CARD, torch.bfloat16).path == "triton"


def _run(op: str, kernels: Any, dtype: torch.dtype = torch.bfloat16) -> str:
    """An op with a stand-in for a tensor on the second GPU."""
    return triton_or_torch(op, SimpleNamespace(device=CARD, dtype=dtype), kernels, lambda *arguments: "torch", 1, 2)  # type: ignore[arg-type]


def _failing(error: BaseException, calls: list[tuple]) -> Any:
    def kernels(*arguments: Any) -> str:
        calls.append(arguments)
        raise error

    return kernels


def build_errors() -> list[Exception]:
    errors: list[Exception] = [
        ImportError("DLL load failed while importing libtriton"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        RuntimeError("PassManager::run failed"),
    ]
    if "triton" in sys.modules or dispatch.TRITON_FOUND:
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        errors += [OutOfResources(147_480, 101_376, "shared memory"), PTXASError("failed")]
        errors.append(CompilationError("", SimpleNamespace(), "input_precision must be one of ..."))  # type: ignore[arg-type]
    return errors


@pytest.mark.parametrize("error", build_errors(), ids=lambda error: type(error).__name__)
def test_a_kernel_that_cannot_be_built_gives_way_to_torch_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pretend(monkeypatch, (12, 0))
    calls: list[tuple] = []
    with pytest.warns(RuntimeWarning, match="attention on cuda:1 takes torch") as caught:
        assert [_run("attention", _failing(error, calls)) for _ in range(3)] == ["torch"] * 3
    assert len(caught) == 1 and calls == [(1, 2)]
    path, reason = choices(CARD)["attention"]
    assert path == "torch" and type(error).__name__ in reason
    assert choices(CARD)["nearest_code"][0] == "triton"
    assert choose("attention", CARD, torch.float32).path == "triton", "other dtypes may do"
    assert choose("attention", torch.device("cuda", 0), torch.bfloat16).path == "triton", "and other cards"


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), torch.OutOfMemoryError("out of memory"), ValueError("target")]
)  # fmt: skip
def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pretend(monkeypatch, (9, 0))
    with pytest.raises(type(error), match=str(error)):
        _run("attention", _failing(error, []))
    assert choices(CARD)["attention"][0] == "triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds its driver here")
@pytest.mark.skipif(not dispatch.TRITON_FOUND, reason="needs Triton")
def test_every_op_gives_its_result_where_no_kernel_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a GPU, up to Triton's complaint that it has no driver; arguments of the kernels' sides and of torch's agree."""
    monkeypatch.setattr(dispatch, "choose", lambda op, device, dtype: dispatch.Choice("triton", ""))
    q, k, v, grad = (torch.randn(1, 40, heads, 8) for heads in (4, 2, 2, 4))
    mask = torch.ones(1, 40, dtype=torch.int64), None, True, 0, 0.0, 0.3
    hidden, weight, target = torch.randn(12, 16).bfloat16(), torch.randn(50, 16).bfloat16(), torch.arange(12)
    loss = hidden, weight, target, None, 0, 50, None, 0.0, -100, torch.tensor(0.0), "mean", False, True, True
    row = torch.rand(12)
    again = hidden, weight, target, row, row, row, 0, 50, None, 0.0, True, True
    key = [torch.arange(3)] * 3
    cache, ends = torch.randn(1, 2, 50, 8), torch.tensor([40])
    draw = torch.randn(2, 3, 5), 2.0, 1.0, 1.0, 0, 1.0, *key, 0
    out, lse = torch.ops.emu_kernels.attention(q, k, v, *mask)
    runs: list[tuple[Any, Any, tuple]] = [
        (attention_ops._forward_cuda, torch.ops.emu_kernels.attention, (q, k, v, *mask)),
        (attention_ops._backward_cuda, torch.ops.emu_kernels.attention_backward, (grad, q, k, v, out, lse, *mask)),
        (loss_ops._forward_cuda, torch.ops.emu_kernels.linear_cross_entropy, loss),
        (loss_ops._backward_cuda, torch.ops.emu_kernels.linear_cross_entropy_backward, again),
        (decode_ops._decode_cuda, torch.ops.emu_kernels.decode_attention, (q, cache, cache, ends - 40, ends, 0.3)),
        (sampler_ops._sample_cuda, torch.ops.emu_kernels.guided_sample, draw),
        (search_ops._nearest_cuda, torch.ops.emu_kernels.nearest_code, (torch.randn(9, 4), torch.randn(6, 4))),
        *_runs_of_norm_rotation_and_gate(q, k),
    ]  # fmt: skip
    for gpu, op, arguments in runs:
        with pytest.warns(RuntimeWarning, match="active drivers"):
            found = gpu(*arguments)
        dispatch._warned.clear()
        expected = op(*arguments)
        for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
            assert torch.equal(ours, theirs)


def _runs_of_norm_rotation_and_gate(q: torch.Tensor, k: torch.Tensor) -> list[tuple[Any, Any, tuple]]:
    weight, (cos, sin), inverse = torch.rand(8), torch.randn(2, 1, 40, 1, 8), torch.rand(1, 40, 4, 1)
    cache, places = torch.zeros(2, 1, 2, 40, 8), torch.arange(40)[None]
    ops = torch.ops.emu_kernels
    return [
        (norm_ops._forward_cuda, ops.rms_norm, (q, weight, 1e-5)),
        (norm_ops._add_cuda, ops.add_rms_norm, (q, q, weight, 1e-5)),
        (norm_ops._backward_cuda, ops.rms_norm_backward, (q, q, weight, inverse, q)),
        (rotary_ops._rotary_cuda, ops.rotary, (q, cos, sin)),
        (rotary_ops._norm_rotary_cuda, ops.norm_rotary, (q, weight, cos, sin, 1e-5)),
        (rotary_ops._norm_rotary_backward_cuda, ops.norm_rotary_backward, (q, q, weight, inverse, cos, sin)),
        (rotary_ops._into_cuda, ops.rotary_into, (q, k, k, cos, sin, *cache, places, weight, weight, 1e-5)),
        (product_ops._few_rows_cuda, ops.few_rows_linear, (q, [torch.rand(5, 8)] * 2, weight, 1e-5, True, None)),
        (gate_ops._forward_cuda, ops.swiglu, (q, q)),
        (gate_ops._backward_cuda, ops.swiglu_backward, (q, q, q)),
    ]


def test_without_triton_all_ops_warn_once_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (8, 9), triton=False)
    with pytest.warns(RuntimeWarning, match="Triton is not installed") as caught:
        assert {_run(op, _failing(AssertionError(), [])) for op in OPS} == {"torch"}
    assert len(caught) == 1


def test_an_old_gpu_takes_torch_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _run("nearest_code", _failing(AssertionError(), [])) == "torch"


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_every_op_has_an_implementation_on_other_devices(device: str) -> None:
    others = (
        "attention_backward",
        "linear_cross_entropy_backward",
        "rms_norm_backward",
        "swiglu_backward",
        "add_rms_norm",
    )
    others += "norm_rotary", "norm_rotary_backward", "rotary_into"
    for op in (*OPS, *others):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"emu_kernels::{op}", device.upper())


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_shapes_on_other_devices_are_known_to_compilers(device: str) -> None:
    with FakeTensorMode():
        q, k = (torch.empty(2, 9, heads, 8, device=device) for heads in (4, 2))
        ids = torch.ones(2, 9, dtype=torch.int64, device=device)
        angle = torch.empty(1, 9, 1, 8, device=device)
        key = {name: torch.ones(3, dtype=torch.int64, device=device) for name in ("seed", "stream", "position")}
        results = [
            attention(q, k, k, segment_ids=ids),
            guided_sample(torch.empty(2, 3, 5, device=device), 2.0, **key),
            linear_cross_entropy(q.view(-1, 8), k.view(-1, 8), ids.new_ones(72), reduction="none"),
            nearest_code(q.view(-1, 8), k.view(-1, 8)),
            rms_norm(q, torch.empty(8, device=device), 1e-5),
            rotary(q, angle, angle),
            few_rows_linear(q, [torch.empty(5, 8, device=device)] * 2),
            swiglu(q, q),
        ]
    assert [(*x.shape, x.device.type) for x in results] == [
        (2, 9, 4, 8, device), (3, device), (72, device), (72, device), (2, 9, 4, 8, device), (2, 9, 4, 8, device),
        (2, 9, 4, 10, device), (2, 9, 4, 8, device),
    ]  # fmt: skip


def _count_compilations(function: Any, device: str, dtype: torch.dtype) -> int:
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, dynamic=True, fullgraph=True)
    for length in range(17, 53, 3):
        compiled(*(torch.empty(2, length, heads, 8, device=device, dtype=dtype) for heads in (4, 2, 2)))
    return counter.frame_count


@pytest.mark.parametrize("options", [{"window": 9}, {"softcap": 5.0}], ids=["window", "soft cap"])
def test_one_graph_serves_all_lengths_on_a_gpu(options: dict[str, Any]) -> None:
    """The choice of a backend is traced along, and must not ask for the length."""
    with FakeTensorMode():
        assert _count_compilations(lambda *qkv: attention(*qkv, **options), "cuda", torch.bfloat16) == 1


def test_one_graph_serves_all_lengths_with_documents_and_with_determinism() -> None:
    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, segment_ids=torch.ones(q.shape[:2], dtype=torch.int64, device=q.device))

    torch.use_deterministic_algorithms(True)
    try:
        with FakeTensorMode():
            assert _count_compilations(packed, "cuda", torch.bfloat16) == 1
            assert _count_compilations(lambda *qkv: attention(*qkv), "cuda", torch.bfloat16) == 1
    finally:
        torch.use_deterministic_algorithms(False)


def test_one_graph_serves_all_lengths_of_torchs_own_attention() -> None:
    """What plain rows take on a GPU, here on the CPU: a build without CUDA cannot even trace it there."""
    count = _count_compilations(lambda q, k, v: torch_attention("cudnn", q, k, v, True, 0.3), "cpu", torch.bfloat16)
    assert count == 1
