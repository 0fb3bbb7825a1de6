"""Random cases of every op against float64: ten thousand on the CPU path, a hundredth by default; five hundred in Triton's interpreter.

A case that fails is named by its number: `failures(op, number, 1, kernels)` of `kernel_cases.py` runs it again.
"""

from __future__ import annotations

import pytest
import torch

from emu_kernels.testing import Interpreter
from tests.kernel_cases import CASES, failures
from tests.kernel_chance import Chance

ON_CPU, INTERPRETED = 10_000, 500


@pytest.mark.parametrize("op", CASES)
def test_the_cpu_path_is_as_close_as_rounding_lets_it_be(op: str) -> None:
    assert failures(op, 0, ON_CPU // 100, kernels=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_the_cpu_path_holds_in_many_cases(op: str) -> None:
    assert failures(op, ON_CPU // 100, ON_CPU - ON_CPU // 100, kernels=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_kernels_hold_in_many_cases(interpreter: Interpreter, op: str) -> None:
    assert interpreter.call(failures, op, 0, INTERPRETED, kernels=True) == []


def test_a_case_is_drawn_again_by_its_number() -> None:
    one, two, other = (Chance("attention", number).numbers((30, 50), torch.float32) for number in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
