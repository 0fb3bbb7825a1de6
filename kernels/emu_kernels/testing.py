"""Means to check kernels without a GPU: peak memory and host waits of a call, Triton's interpreter, and compilation for a GPU."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from emu_kernels import dispatch


def peak_cpu_bytes(function: Callable[[], Any]) -> int:
    """Return the most bytes that torch tensors on CPU held at one time during `function()`, beyond those held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class _Waits(TorchFunctionMode):
    """Counts reads of values that would make the host wait for a GPU; what is computed from a copy on the host is free."""

    READS = (
        Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
        Tensor.nonzero, torch.nonzero, Tensor.unique, torch.unique, torch.unique_consecutive, torch.equal, torch.allclose,
        torch.masked_select, torch.repeat_interleave,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_host = bool(used) and all(hasattr(x, "on_host") for x in used)
        if on_host or func is Tensor.cpu:
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    x.on_host = True  # type: ignore[attr-defined]
        picks = func is Tensor.__getitem__ and any(x.dtype == torch.bool for x in used[1:])
        # Triton's interpreter reads the arguments of every kernel, which a GPU does not.
        if not on_host and (picks or func in self.READS) and "/triton/" not in sys._getframe(1).f_code.co_filename:
            self.count += 1
        return result


def host_waits(function: Callable[[], Any]) -> int:
    """Count how often `function()` would make the host wait, were its tensors on a GPU: as far as reads in Python tell."""
    with _Waits() as waits:
        function()
    return waits.count


def launched_kernels(function: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    """Return the names of the Triton kernels that `function(*arguments, **options)` starts, in order."""
    from unittest import mock

    started: list[str] = []

    def note(kernel: Any, grid: tuple[int, ...], like: Tensor, *values: Any, **config: Any) -> None:
        started.append(kernel.fn.__name__)
        dispatch.launch(kernel, grid, like, *values, **config)

    with mock.patch.object(sys.modules[function.__module__], "launch", note):
        function(*arguments, **options)
    return started


class Interpreter:
    """Run functions that launch Triton kernels on CPU tensors, in a process of its own.

    Triton reads TRITON_INTERPRET when it is first imported, so a process interprets either all kernels or none. Memory that
    `torch.empty` returns there is filled with NaN, which shows what a kernel leaves unwritten.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start_interpreter)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return `function(*arguments, **options)`; the function travels by its name, which that process imports, tensors by value."""
        return self._pool.submit(function, *arguments, **options).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _start_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


INSTRUCTIONS = {
    "wgmma": "wgmma.mma_async",
    "tcgen05": "tcgen05.mma",
    "mma": "mma.sync.aligned.m16n8",
    "cp.async": "cp.async.cg",
    "tma": "cp.async.bulk.tensor",
}
"""How products on tensor cores, of three generations, and copies of 16 bytes and of tiles ahead of use begin in PTX."""


@dataclass(frozen=True)
class CompiledKernel:
    """What a kernel needs on the GPU that it was compiled for, and what it is made of.

    Bytes of shared memory of a block, registers and bytes of local memory (spilled registers and arrays) of a thread, how often each
    of INSTRUCTIONS occurs in its PTX, and the assembler's advice (its messages C7500 to C7599 say that products wait for each other).
    """

    shared_bytes: int
    num_registers: int
    spill_bytes: int
    instructions: dict[str, int]
    advice: tuple[str, ...]


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, int],
    capability: int = 90,
) -> CompiledKernel:
    """Compile a Triton kernel for an NVIDIA GPU that need not be there.

    Args:
        kernel: a function decorated with `triton.jit`.
        types: of the arguments that are not constants, as "*fp32" or "i32"; those not named are "i32", and "i32:16" is one
            that is a multiple of 16. Pointers are taken to be so.
        constants: values of the `tl.constexpr` arguments and of arguments to specialise on.
        options: num_warps and num_stages.
        capability: compute capability times ten.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    multiples = [name for name, kind in signature.items() if kind[0] == "*" or kind.endswith(":16")]
    signature = {name: kind.removesuffix(":16") for name, kind in signature.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # what comes from a cache has no log
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    registers, spilled = _resource_usage(compiled.asm["cubin"])
    counts = {name: compiled.asm["ptx"].count(text) for name, text in INSTRUCTIONS.items()}
    advice = tuple(line for line in log.getvalue().splitlines() if re.search(r"\bC75\d\d\b", line))
    return CompiledKernel(compiled.metadata.shared, registers, spilled, counts, advice)


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Read registers and bytes of local memory per thread of the kernel in a cubin."""
    import triton

    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    tool = shutil.which("cuobjdump", path=tools) or shutil.which("cuobjdump")
    if tool is None:
        raise FileNotFoundError(
            f"cuobjdump is neither in {tools} nor on PATH; install the CUDA toolkit or another triton"
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report.stdout)
    if usage is None:
        raise ValueError(f"cuobjdump reported no resource usage: {report.stdout!r}")
    return int(usage[1]), int(usage[2]) + int(usage[3])
