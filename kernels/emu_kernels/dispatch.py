"""Which implementation an op takes on a device, Triton's kernels or plain torch, and why; and the way back when Triton fails.

Every op runs everywhere: where Triton is missing, does not compile or asks for more than the GPU has, the op warns once and takes its
torch implementation, then and from there on. `launch` is the one place where Triton kernels start.
"""

from __future__ import annotations

import importlib.util
import subprocess
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from emu_kernels.architectures import OLDEST, Architecture, architecture_of

OPS = (
    "attention",
    "decode_attention",
    "few_rows_linear",
    "linear_cross_entropy",
    "guided_sample",
    "nearest_code",
    "rms_norm",
    "rotary",
    "swiglu",
)
HALVES = (torch.bfloat16, torch.float16)
TRITON_FOUND = importlib.util.find_spec("triton") is not None
WITHOUT_TRITON = "Triton is not installed"
# What Triton says, in plain RuntimeErrors, when it cannot build a kernel on this machine.
BUILD_MESSAGES = ("C compiler", "C++ compiler", "active drivers", "newly compiled", "PassManager")
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """Path of an op, "triton" or "torch", and the reason in plain words."""

    path: str
    reason: str


_failures: dict[tuple[str, torch.device, torch.dtype], str] = {}
_warned: set[str] = set()


def choices(device: torch.device) -> dict[str, tuple[str, str]]:
    """Tell what each op that has Triton kernels runs on a device, and why: name of the op -> ("triton" or "torch", reason).

    Cheap, needs no GPU and raises nothing: a device that this machine does not have is among the reasons. What was found out while the
    ops ran, a kernel that could not be compiled say, is part of the answer.
    """
    return {op: (found.path, found.reason) for op in OPS for found in [choose(op, device)]}


def choose(op: str, device: torch.device, dtype: torch.dtype | None = None) -> Choice:
    """Choose the path of `op` for tensors of `dtype` on a device; without a dtype what most calls take."""
    found = _device_choice(device)
    if found.path == "torch":
        return found
    if dtype is not None:
        failure = _failures.get((op, device, dtype))
        if failure is not None:
            return Choice("torch", failure)
        return found if dtype in _dtypes(op) else Choice("torch", f"{dtype} is computed in torch")
    for (failed, where, kind), failure in _failures.items():
        if failed == op and device in (where, torch.device("cuda")):
            return Choice("torch", f"for {kind}: {failure}")
    return Choice("triton", f"{found.reason}; {_scope(op)}")


def architecture(device: torch.device) -> Architecture | None:
    """Return the architecture of a CUDA device that Triton has kernels for, else None."""
    return _survey(device)[0] if device.type == "cuda" else None


def _device_choice(device: torch.device) -> Choice:
    if device.type == "cpu":
        return Choice("torch", "the CPU has an implementation of its own")
    if device.type != "cuda":
        return Choice("torch", f"there are no Triton kernels for {device.type} devices")
    found, reason = _survey(device)
    return Choice("torch" if found is None else "triton", reason)


@cache
def _survey(device: torch.device) -> tuple[Architecture | None, str]:
    """Find the architecture of a CUDA device, None where Triton's kernels do not run, and the reason."""
    if torch.version.hip is not None:
        return None, "the Triton kernels are for NVIDIA GPUs, and this is torch for AMD"
    try:
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (AssertionError, RuntimeError, ValueError) as error:  # torch without CUDA, no driver, or no such device
        return None, f"torch finds no device {device}: {str(error).splitlines()[0]}"
    number = ".".join(map(str, capability))
    found = architecture_of(capability)
    if found is None:
        return None, f"{name} has compute capability {number}; the Triton kernels need {OLDEST[0]}.{OLDEST[1]}"
    if not TRITON_FOUND:
        return None, WITHOUT_TRITON
    return found, f"{name}, compute capability {number}: kernels for {found.name}"


def _dtypes(op: str) -> tuple[torch.dtype, ...]:
    """Return the dtypes that an op's kernels compute."""
    if op == "linear_cross_entropy":
        return HALVES
    return (*HALVES, torch.float32, torch.float64) if op == "guided_sample" else (*HALVES, torch.float32)


def _scope(op: str) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in _dtypes(op)]
    scope = f"for {', '.join(names)}"
    return f"{scope}; rows without documents, window or soft cap take torch's own" if op == "attention" else scope


def without_autocast(like: Tensor) -> AbstractContextManager:
    """End autocast at the door of an op, which computes in the dtypes that it promises: it would reach the products inside."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def triton_or_torch(op: str, like: Tensor, kernels: Callable[..., T], plain: Callable[..., T], *arguments: Any) -> T:
    """Run an op on the device of `like`: `kernels`, which may import and compile, or `plain` where they cannot run."""
    with without_autocast(like):
        return _run(op, like, kernels, plain, *arguments)


def _run(op: str, like: Tensor, kernels: Callable[..., T], plain: Callable[..., T], *arguments: Any) -> T:
    choice = choose(op, like.device, like.dtype)
    if choice.path == "triton":
        try:
            return kernels(*arguments)
        except _build_errors() as error:
            reason = _build_failure(error)
        except RuntimeError as error:
            if type(error) is not RuntimeError or not any(part in str(error) for part in BUILD_MESSAGES):
                raise
            reason = _build_failure(error)
        _failures[op, like.device, like.dtype] = reason
        _warn(f"emu_kernels.{op} on {like.device} takes torch for {like.dtype}: {reason}")
    elif choice.reason == WITHOUT_TRITON:
        _warn("Triton is not installed, so that emu_kernels computes in plain torch, slower and with more memory")
    return plain(*arguments)


def _build_errors() -> tuple[type[Exception], ...]:
    """Return what an import, a compilation or a launch that asks for too much raises; asked for only when something was raised."""
    found: tuple[type[Exception], ...] = (ImportError, subprocess.CalledProcessError)
    try:
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError
    except ImportError:
        return found
    return (*found, CompilationError, OutOfResources, PTXASError)


def _build_failure(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"the Triton kernel cannot be built ({type(error).__name__}: {lines[-1]})"


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the device of a CUDA tensor the current one; do nothing for tensors elsewhere."""
    return torch.cuda.device_of(tensor)


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
    """Start `kernel` on `grid` with arguments that live where `like` does.

    Triton takes device and stream from what is current, and a custom op does not make its tensors' device current: without this a
    kernel on the tensors of a second GPU would run on the first one.
    """
    with device_of(like):
        kernel[grid](*arguments, **options)
