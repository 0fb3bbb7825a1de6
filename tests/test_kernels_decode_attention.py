"""Attention to a cache equals a plain sum over the slots that each token sees, whatever the other rows and the size of the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu_kernels import decode_attention
from emu_kernels.decode_attention.gpu import decode_attention_triton
from emu_kernels.testing import Interpreter, host_waits

pytest.importorskip("triton")

CASES = {
    "one token of rows of unequal length": (3, 1, 4, 2, 290, 16),
    "a window of tokens": (2, 5, 4, 1, 300, 12),
    "one head of keys for each of queries": (1, 16, 2, 2, 40, 40),
}


def inputs(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, keys, values, begin and end; the second row is so short that tokens of a window stand before its beginning."""
    rows, tokens, heads, key_heads, capacity, width = CASES[name]
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(rows, tokens, heads, width, generator=generator).to(dtype)
    keys, values = (torch.randn(rows, key_heads, capacity, width, generator=generator).to(dtype) for _ in range(2))
    begin, end = torch.tensor([0, 7, 3])[:rows], torch.tensor([capacity, 9, 280])[:rows].clamp(max=capacity)
    return q, keys, values, begin, end


def plain(q: Tensor, keys: Tensor, values: Tensor, begin: Tensor, end: Tensor, scale: float) -> Tensor:
    """One token and head after the other, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    groups = q.shape[2] // keys.shape[1]
    for row, token, head in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = slice(int(begin[row]), int(end[row]) - q.shape[1] + token + 1)
        if seen.stop > seen.start:
            own_keys, own_values = (x[row, head // groups, seen].double() for x in (keys, values))
            out[row, token, head] = (scale * own_keys @ q[row, token, head].double()).softmax(0) @ own_values
    return out


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CASES)
def test_torch_and_triton_equal_the_plain_sum(interpreter: Interpreter, name: str) -> None:
    case = inputs(name)
    expected = plain(*case, 0.3)
    assert relative_error(decode_attention(*case, scale=0.3), expected) < 1e-12
    for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 4e-4)):
        rounded = *(x.to(dtype) for x in case[:3]), *case[3:]
        found = interpreter.call(decode_attention_triton, *rounded, 0.3)
        assert found.dtype == dtype and relative_error(found, plain(*rounded, 0.3)) < limit


def test_a_row_is_the_same_to_the_last_bit_in_any_batch_and_cache(interpreter: Interpreter) -> None:
    q, keys, values, begin, end = inputs("one token of rows of unequal length", torch.float32)
    together = interpreter.call(decode_attention_triton, q, keys, values, begin, end, 0.3)
    for row in range(3):
        first, last = int(begin[row]), int(end[row])
        own = slice(row, row + 1)
        alone = interpreter.call(
            decode_attention_triton, q[own], keys[own, :, first:last].contiguous(), values[own, :, first:last].contiguous(),
            torch.tensor([0]), torch.tensor([last - first]), 0.3,
        )  # fmt: skip
        assert torch.equal(alone, together[own])


def test_views_of_a_larger_cache_are_read_in_place_and_the_host_never_waits(interpreter: Interpreter) -> None:
    q, keys, values, begin, end = inputs("a window of tokens", torch.float32)
    expected = interpreter.call(decode_attention_triton, q, keys, values, begin, end, 0.3)
    room = torch.nn.functional.pad(torch.stack([keys, values]), (0, 0, 0, 100), value=3.0)
    views = (part[: len(q)] for part in room)
    assert torch.equal(interpreter.call(decode_attention_triton, q, *views, begin, end, 0.3), expected)
    assert host_waits(lambda: decode_attention(q, keys, values, begin, end)) == 0


def test_registration_is_sound() -> None:
    case = inputs("a window of tokens")
    torch.library.opcheck(torch.ops.emu_kernels.decode_attention.default, (*case, 0.3))


BAD_ARGUMENTS = {
    "begin of other rows": ({"begin": torch.zeros(3, dtype=torch.int64)}, ValueError, "begin"),
    "end in floats": ({"end": torch.zeros(2)}, TypeError, "end"),
    "keys of other heads": (
        {"keys": torch.zeros(2, 3, 300, 12), "values": torch.zeros(2, 3, 300, 12)},
        ValueError,
        "q has 4",
    ),
    "keys of another width": ({"keys": torch.zeros(2, 1, 300, 8)}, ValueError, "keys"),
    "no scale": ({"scale": 0.0}, ValueError, "scale"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_named(name: str) -> None:
    changes, error, words = BAD_ARGUMENTS[name]
    case = dict(zip(("q", "keys", "values", "begin", "end"), inputs("a window of tokens", torch.float32), strict=True))
    with pytest.raises(error, match=words):
        decode_attention(**case | changes)
