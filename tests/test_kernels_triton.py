"""Every Triton kernel in Triton's interpreter against float64 references: ragged sizes, memory poisoned with NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emu_kernels import guided_sample, reference
from emu_kernels.attention.gpu import attention_triton
from emu_kernels.attention.gpu_backward import attention_backward_triton
from emu_kernels.dispatch import launch
from emu_kernels.guided_sample.gpu import guided_sample_triton
from emu_kernels.linear_cross_entropy.cpu import backward_chunked, forward_chunked
from emu_kernels.linear_cross_entropy.gpu import backward_triton, forward_triton
from emu_kernels.nearest_code.gpu import nearest_code_triton, pack_kernel, packed_slack, packed_width
from emu_kernels.nearest_code.gpu_wide import nearest_code_wide
from emu_kernels.rms_norm.gpu import rms_norm_backward_triton, rms_norm_triton
from emu_kernels.rotary.gpu import norm_rotary_backward_triton, norm_rotary_triton
from emu_kernels.swiglu.gpu import swiglu_triton
from emu_kernels.testing import Interpreter, host_waits, launched_kernels, peak_cpu_bytes
from tests.kernel_cases import CASES, failures

triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("the interpreter of triton 3.6 fails with numpy 2.4 and later", allow_module_level=True)

LOSS_BLOCKS = {"BLOCK_ROWS": 32, "BLOCK_IDS": 128, "BLOCK_WIDTH": 32, "GROUP_ROWS": 2, "DESCRIPTORS": True}
POINTED_LOSS_BLOCKS = LOSS_BLOCKS | {"DESCRIPTORS": False}


def tiles(queries: int = 32, keys: int = 32, descriptors: bool = False, dtype: torch.dtype = torch.float32) -> dict:
    """A configuration of the attention kernels for heads of at most 16 features."""
    product = "tf32x3" if dtype == torch.float32 else None
    blocks = {"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys, "BLOCK_WIDTH": 16}
    return blocks | {"DESCRIPTORS": descriptors, "PRODUCT": product}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.detach()).norm() / expected.detach().norm().clamp(min=1e-12))


def loss_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, target, weights: 45 tokens, 24 features, 210 ids, none a multiple of a block."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(45, 24, generator=generator).half()
    weight = torch.randn(210, 24, generator=generator).half()
    target = torch.randint(60, 150, (45,), generator=generator)
    target[3] = -100
    weights = torch.rand(45, generator=generator)
    weights[7] = 0.0
    return hidden, weight, target, weights


def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Of hidden and weight, where a forward leaves what both are to be multiplied with beside them."""
    return [gradient * outputs[5] for gradient in outputs[3:5]]


LOSSES = {
    "mean": ("mean", False, (0, 210), False, 0.0, 0.0),
    "weighted slice with z-loss": ("sum", True, (50, 110), False, 0.0, 0.1),
    "own slices with soft cap": ("mean", True, (0, 210), True, 2.0, 0.1),
    "each token": ("none", False, (0, 210), False, 0.0, 0.0),
}


@pytest.mark.parametrize(("name", "blocks"), [*((name, LOSS_BLOCKS) for name in LOSSES), ("mean", POINTED_LOSS_BLOCKS)])
def test_linear_cross_entropy(interpreter: Interpreter, name: str, blocks: dict) -> None:
    reduction, weighted, (first, count), own, softcap, z_loss = LOSSES[name]
    hidden, weight, target, weights = loss_case()
    ranges = torch.tensor([[0, 210], [50, 100]]).repeat(23, 1)[:45] if own else None
    options = (target, weights if weighted else None, first, count, ranges, softcap, -100, z_loss, reduction)
    wanted = True, reduction != "none", reduction != "none"
    found = interpreter.call(forward_triton, hidden, weight, *options, *wanted, config=blocks)
    expected = forward_chunked(hidden.double(), weight.double(), *options, *wanted)
    assert torch.equal(found[2], expected[2])
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(found[:2], expected[:2], strict=True))
    assert all(relative_error(a, b) < 1e-3 for a, b in zip(gradients(found), gradients(expected), strict=True))


def test_large_logits_under_z_loss_stay_within_float16(interpreter: Interpreter) -> None:
    """1 + 2 z lse is about 7 here, beside gradients that fill the range as they are."""
    hidden, weight, target, _ = loss_case()
    hidden = hidden * 16.0
    options = (target, None, 0, 210, None, 0.0, -100, 0.05, "mean", False, True, True)
    found = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)
    expected = forward_chunked(hidden.double(), weight.double(), *options)
    assert float(expected[1].max()) > 200
    assert all(relative_error(a, b) < 2e-3 for a, b in zip(gradients(found), gradients(expected), strict=True))


@pytest.mark.parametrize("kept", [41, 45])
def test_the_factor_of_all_tokens_is_not_rounded(interpreter: Interpreter, kept: int) -> None:
    """1 / 41 is no number of float16: the gradient of each target, and so the whole, would be off by the same share."""
    hidden, weight, target, _ = loss_case()
    hidden = 32 * hidden  # sure of the wrong ids, so that targets make the gradient
    target[:] = 60 + torch.arange(45)
    target[kept:] = -100
    options = (target, None, 0, 210, None, 0.0, -100, 0.0, "mean", False, True, True)
    found = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)
    expected = forward_chunked(hidden.double(), weight.double(), *options)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        bias = (ours.double() * theirs).sum() / theirs.square().sum() - 1
        assert abs(float(bias)) < 2e-5


def test_the_most_likely_id_of_a_row_that_is_not_a_number_is_an_id(interpreter: Interpreter) -> None:
    hidden, weight, target, _ = loss_case()
    hidden[5] = torch.nan
    options = (target, None, 0, 210, None, 0.0, -100, 0.0, "none", True, False, False)
    best = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)[2]
    assert 0 <= int(best[5]) < 210


def test_linear_cross_entropy_in_chunks(interpreter: Interpreter) -> None:
    """Two chunks of one slice, the second of which adds to what the first has written into memory full of NaN."""
    hidden, weight, target, _ = loss_case()
    options = (target, None, 50, 110, None, 0.0, -100, 0.0, "mean", False, True, True)
    found = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS, scratch_bytes=1)
    expected = forward_chunked(hidden.double(), weight.double(), *options)
    assert all(relative_error(a, b) < 1e-3 for a, b in zip(gradients(found), gradients(expected), strict=True))
    assert not found[4][:50].any() and not found[4][160:].any()


@pytest.mark.parametrize("with_targets", [True, False])
def test_linear_cross_entropy_backward(interpreter: Interpreter, with_targets: bool) -> None:
    hidden, weight, target, weights = loss_case()
    lse = reference.linear_cross_entropy(hidden.double(), weight.double(), target.abs(), softcap=2.0)[1]
    on_target = 0.01 * weights if with_targets else None  # times a probability: below the normal numbers of float16
    target = target.abs() if with_targets else None
    options = 0, 210, None, 2.0, True, True
    found = interpreter.call(
        backward_triton, hidden, weight, target, 0.02 * weights, on_target,
        lse.float(), *options, config=LOSS_BLOCKS,
    )  # fmt: skip
    exact_on_target = on_target.double() if on_target is not None else None
    expected = backward_chunked(
        hidden.double(), weight.double(), target, 0.02 * weights.double(), exact_on_target, lse, *options
    )
    assert all(relative_error(a, b) < 1e-3 for a, b in zip(found, expected, strict=True))


WAITS = {
    "checked": (1, False, {}),
    "weights": (1, True, {}),
    "slices of tokens": (1, True, {"own": True}),
    "unchecked": (0, True, {"check": False}),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_host_waits_once_for_the_loss_or_not_at_all(interpreter: Interpreter, name: str) -> None:
    expected, weighted, options = WAITS[name]
    hidden, weight, target, weights = loss_case()
    own = torch.tensor([[0, 210], [50, 100], [60, 90]]).repeat(15, 1) if options.get("own") else None
    target[:] = 60 + torch.arange(45)
    target[3] = -100
    arguments = (target, weights if weighted else None, 0, 210, own, 0.0, -100, 1e-3, "mean")
    forward = partial(forward_triton, hidden, weight, *arguments, True, True, True, config=LOSS_BLOCKS)
    lse, factor = torch.full((45,), 9.0), torch.rand(45)
    backward = partial(
        backward_triton, hidden, weight, target, factor, factor, lse, 0, 210, own, 0.0, True, True, config=LOSS_BLOCKS
    )  # fmt: skip
    check = {"check": options["check"]} if "check" in options else {}
    assert interpreter.call(host_waits, partial(forward, **check)) == expected
    assert interpreter.call(host_waits, partial(backward, **check)) == expected


def test_the_host_waits_for_no_other_kernel(interpreter: Interpreter) -> None:
    q, k, v, grad = (torch.randn(1, 45, heads, 12) for heads in (2, 1, 1, 2))
    ids, offsets = torch.ones(1, 45, dtype=torch.int64), torch.tensor([0, 7, 45], dtype=torch.int32)
    key = [torch.arange(3)] * 3
    for documents in ((ids, None), (None, offsets)):
        arguments = *documents, True, 0, 0.0, 0.3
        out, lse = interpreter.call(attention_triton, q, k, v, *arguments, config=tiles())
        runs = [
            partial(attention_triton, q, k, v, *arguments, config=tiles()),
            partial(attention_backward_triton, grad, q, k, v, out, lse, *arguments, configs=(tiles(), tiles())),
        ]
        assert [interpreter.call(host_waits, run) for run in runs] == [0, 0]
    sampler = partial(guided_sample_triton, torch.randn(2, 3, 500), 2.0, 1.0, 1.0, 5, 0.9, *key, 0)
    assert interpreter.call(host_waits, sampler) == 0
    assert interpreter.call(host_waits, partial(nearest_code_triton, torch.randn(37, 4), torch.randn(150, 4))) == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_unchecked_loss_leaves_out_what_is_skipped_all_the_same(interpreter: Interpreter, reduction: str) -> None:
    """Also when a skipped token holds what is not a number, and a target is no id."""
    hidden, weight, target, weights = loss_case()
    wanted = True, reduction == "mean", reduction == "mean"
    options = weights, 0, 210, None, 2.0, -100, 0.1, reduction, *wanted
    expected = interpreter.call(forward_triton, hidden, weight, target, *options, config=LOSS_BLOCKS)
    hidden[[3, 7]], target[7] = torch.nan, 10**6
    found = interpreter.call(forward_triton, hidden, weight, target, *options, check=False, config=LOSS_BLOCKS)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    factor = torch.where((target == -100) | (weights == 0), 0.0, 0.1)
    run = partial(interpreter.call, backward_triton)
    again = factor, factor, expected[1], 0, 210, None, 2.0, True, True
    hurt = run(hidden, weight, target, *again, check=False, config=LOSS_BLOCKS)
    clean = run(hidden.nan_to_num(), weight, target.clamp(max=209), *again, config=LOSS_BLOCKS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(hurt, clean, strict=True))


@pytest.mark.slow
def test_the_scratch_of_the_loss_stays_within_its_size(interpreter: Interpreter) -> None:
    """Few ids and wide states: what the chunk's states take counts, not its logits alone."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 1024, generator=generator).half() for rows in (2048, 128))
    target = torch.randint(0, 128, (2048,), generator=generator)
    target[0] = -100  # so that states are gathered
    blocks = LOSS_BLOCKS | {"BLOCK_ROWS": 128, "BLOCK_WIDTH": 128}
    run = partial(
        forward_triton, hidden, weight, target, None, 0, 128, None, 0.0, -100, 0.0, "mean", False, True, True,
        config=blocks, scratch_bytes=2 * 2**20,
    )  # fmt: skip
    results = 4 * (hidden.numel() + weight.numel())
    # Beside the promise: factors in float32 that the products of a CPU want, and vectors with a number for each token.
    assert interpreter.call(peak_cpu_bytes, run) < results + 2 * 2**20 + 2 * 2**20


def test_states_of_an_odd_width_take_the_kernels_too(interpreter: Interpreter) -> None:
    hidden, weight, target, weights = loss_case()
    hidden, weight = hidden[:, :21], weight[:, :21]
    options = target, weights, 0, 210, None, 0.0, -100, 0.1, "sum", True, True, True
    found = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)
    expected = forward_chunked(hidden.double(), weight.double(), *options)
    assert torch.equal(found[2], expected[2])
    pairs = zip([*found[:2], *gradients(found)], [*expected[:2], *gradients(expected)], strict=True)
    assert all(relative_error(ours, theirs) < 1e-3 for ours, theirs in pairs)
    factor = torch.rand(45)
    factor[[3, 7]] = 0.0  # skipped, so that their log-sum-exp means nothing
    again = target.abs(), factor, factor, found[1], 0, 210, None, 0.0, True, True
    found = interpreter.call(backward_triton, hidden, weight, *again, config=LOSS_BLOCKS)
    exact = backward_chunked(hidden.double(), weight.double(), *(x.double() if x is factor else x for x in again))
    assert all(a.is_contiguous() and relative_error(a, b) < 1e-3 for a, b in zip(found, exact, strict=True))
    launched = interpreter.call(launched_kernels, forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)
    assert "logits_kernel" in launched


def test_a_float32_weight_beside_16_bits_keeps_its_gradient_in_float32(interpreter: Interpreter) -> None:
    hidden, weight, target, _ = loss_case()
    options = target, None, 0, 210, None, 0.0, -100, 0.0, "mean", False, True, True
    rounded = interpreter.call(forward_triton, hidden, weight, *options, config=LOSS_BLOCKS)
    found = interpreter.call(forward_triton, hidden, weight.float(), *options, config=LOSS_BLOCKS)
    assert all(torch.equal(a, b) for a, b in zip(found, rounded, strict=True))
    again = target.abs(), torch.rand(45), torch.rand(45), found[1], 0, 210, None, 0.0, True, True
    assert (
        interpreter.call(backward_triton, hidden, weight.float(), *again, config=LOSS_BLOCKS)[1].dtype == torch.float32
    )


ATTENTION = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 9},
    "documents": {"segment_ids": True},
    "full documents and window": {"segment_ids": True, "window": 7, "causal": False},
    "documents and soft cap": {"segment_ids": True, "softcap": 2.0},
    "offsets": {"cu_seqlens": True},
}


def run_attention(
    interpreter: Interpreter, tensors: tuple[Tensor, ...], arguments: tuple, form: tuple[dict, dict, dict]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of (q, k, v, grad); `form` configures the forward, the kernel of keys and that of queries."""
    q, k, v, grad = tensors
    out, lse = interpreter.call(attention_triton, q, k, v, *arguments, config=form[0])
    gradients = interpreter.call(attention_backward_triton, grad, q, k, v, out, lse, *arguments, configs=form[1:])
    return out, gradients


# float32 comes by pointer, 16 bits by pointer or by descriptor; blocks are of unequal size on every GPU.
FORMS = {
    "float32": (tiles(32, 32), tiles(16, 32), tiles(32, 16)),
    "float16, descriptors": (
        tiles(32, 16, True, torch.float16),
        tiles(16, 32, True, torch.float16),
        tiles(32, 32, True, torch.float16),
    ),
    "float16, pointers": tuple(tiles(32, 32, False, torch.float16) for _ in range(3)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_forward_and_backward(interpreter: Interpreter, name: str, form: str) -> None:
    dtype = torch.float32 if form == "float32" else torch.float16
    options = dict(ATTENTION[name])
    softcap = options.pop("softcap", None)
    if "segment_ids" in options:
        segment_ids = torch.full((1, 45), 7)
        segment_ids[0, :5], segment_ids[0, 38:] = 1, 0
        options["segment_ids"] = segment_ids
    if "cu_seqlens" in options:
        options["cu_seqlens"] = torch.tensor([0, 7, 20, 20, 41], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 45, heads, 12, generator=generator).to(dtype) for heads in (2, 1, 1, 2))
    arguments = (
        options.get("segment_ids"), options.get("cu_seqlens"), options.get("causal", True),
        options.get("window", 0), softcap or 0.0, 0.3,
    )  # fmt: skip
    out, found = run_attention(interpreter, (q, k, v, grad), arguments, FORMS[form])
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    expected = reference.attention(*exact, reference.visible(1, 45, **options), softcap, 0.3)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    limit = 1e-6 if dtype == torch.float32 else 1e-3
    assert all(relative_error(a, b) < limit for a, b in zip((out, *found), (expected, *wanted), strict=True))


@pytest.mark.parametrize("form", [name for name in FORMS if name != "float32"])
def test_attention_of_several_rows_and_groups_of_heads(interpreter: Interpreter, form: str) -> None:
    """Documents of their own in each row, six query heads over two key heads."""
    ids = torch.ones(2, 45, dtype=torch.int64)
    ids[0, 30:], ids[1, 9:], ids[1, 40:] = 2, 3, 0
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(2, 45, heads, 12, generator=generator).half() for heads in (6, 2, 2, 6))
    out, found = run_attention(interpreter, tensors, (ids, None, True, 20, 0.0, 0.3), FORMS[form])
    exact = [x.double().requires_grad_() for x in tensors[:3]]
    expected = reference.attention(*exact, reference.visible(2, 45, segment_ids=ids, window=20), scale=0.3)
    wanted = torch.autograd.grad(expected, exact, tensors[3].double())
    assert all(relative_error(a, b) < 1e-3 for a, b in zip((out, *found), (expected, *wanted), strict=True))


@pytest.mark.parametrize(("value", "form"), [("nan", "float32"), ("inf", "float16, descriptors")])
@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
def test_what_is_not_finite_stays_in_its_document(interpreter: Interpreter, name: str, value: str, form: str) -> None:
    """A bad position in the second of three documents, and one in padding: the others come out as if it were not there."""
    ids = torch.tensor([1] * 5 + [2] * 15 + [3] * 18 + [0] * 7)[None]
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if form == "float32" else torch.float16
    tensors = {
        n: torch.randn(1, 45, h, 12, generator=generator).to(dtype)
        for n, h in zip(("q", "k", "v", "grad"), (2, 1, 1, 2), strict=True)
    }
    arguments = ids, None, True, 0, 0.0, 0.3
    clean = run_attention(interpreter, tuple(tensors.values()), arguments, FORMS[form])
    tensors[name][0, [12, 40]] = float(value)
    out, gradients = run_attention(interpreter, tuple(tensors.values()), arguments, FORMS[form])
    others = (ids == 1) | (ids == 3)
    for found, expected in zip((out, *gradients), (clean[0], *clean[1]), strict=True):
        assert torch.equal(found[others], expected[others])
        assert not found[ids == 0].any()
    spoilt = gradients[0] if name == "grad" else out
    assert spoilt[0, 12].isnan().all(), "what depends on it must show it"
    assert not spoilt[0, 5:12].isnan().any(), "and nothing before it may"


def test_offsets_beyond_the_row_lead_to_no_keys_beyond_it(interpreter: Interpreter) -> None:
    """Their values are not checked on a GPU."""
    q, k, v = (torch.randn(1, 40, h, 8, generator=torch.Generator().manual_seed(h)) for h in (2, 1, 1))
    arguments = None, torch.tensor([0, 100], dtype=torch.int32), False, 0, 0.0, 0.3
    out, _ = interpreter.call(attention_triton, q, k, v, *arguments, config=tiles())
    expected = reference.attention(
        q.double(), k.double(), v.double(), reference.visible(1, 40, causal=False), scale=0.3
    )
    assert relative_error(out, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0, 1])
def test_attention_takes_views_of_one_projection(interpreter: Interpreter, dtype: torch.dtype, offset: int) -> None:
    """Also views whose addresses and strides no tensor descriptor takes."""
    joint = torch.randn(2, 19, 32 + offset, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = joint[..., offset:].unflatten(-1, (4, 8)).split((2, 1, 1), dim=2)
    blocks = tiles(descriptors=dtype == torch.float16, dtype=dtype)
    out, _ = interpreter.call(attention_triton, q, k, v, None, None, True, 0, 0.0, 0.5, config=blocks)
    expected = reference.attention(q.double(), k.double(), v.double(), reference.visible(2, 19), scale=0.5)
    assert relative_error(out, expected) < (1e-6 if dtype == torch.float32 else 1e-3)


SAMPLERS = {
    "plain": (1, {}),
    "guided top-k": (2, {"top_k": 17}),
    "guided twice top-p": (3, {"top_p": 0.7}),
    "all": (2, {"top_k": 50, "top_p": 0.8, "temperature": 0.7}),
    "greedy": (2, {"temperature": 0.0}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_draws_the_tokens_of_the_cpu_path(interpreter: Interpreter, name: str) -> None:
    num_guides, options = SAMPLERS[name]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_guides, 3, 517, generator=generator)
    logits[:, 0, 100:] = -torch.inf
    seed, stream, position = (torch.randint(0, 2**40, (3,), generator=generator) for _ in range(3))
    expected = guided_sample(logits, (2.0, 1.5), **options, seed=seed, stream=stream, position=position, draw=3)
    found = interpreter.call(
        guided_sample_triton, logits, 2.0, 1.5, options.get("temperature", 1.0),
        options.get("top_k", 0), options.get("top_p", 1.0), seed, stream, position, 3,
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_sampler_takes_rows_longer_than_its_filter(interpreter: Interpreter) -> None:
    logits = torch.randn(2, 1, 40_000, generator=torch.Generator().manual_seed(1))
    key = [torch.tensor([number]) for number in (5, 6, 7)]
    names = dict(zip(("seed", "stream", "position"), key, strict=True))
    expected = guided_sample(logits, 2.0, top_k=100, top_p=0.9, **names)
    found = interpreter.call(guided_sample_triton, logits, 2.0, 1.0, 1.0, 100, 0.9, *key, 0)
    assert torch.equal(found, expected)


INFINITE = [*((name, 517) for name in SAMPLERS if name != "greedy"), ("plain", 33_000), ("all", 33_000)]


@pytest.mark.parametrize(("name", "number"), INFINITE)
def test_sampler_draws_infinite_logits_as_the_cpu_path_does(interpreter: Interpreter, name: str, number: int) -> None:
    """Rows with one, with several and without, in the kernel and in the filter of long rows."""
    num_guides, options = SAMPLERS[name]
    logits = torch.randn(num_guides, 4, number, generator=torch.Generator().manual_seed(1))
    logits[0, 0, 30] = logits[0, 1, 40] = logits[0, 1, 50] = logits[0, 2, 500] = torch.inf
    key = [torch.arange(4)] * 3
    names = dict(zip(("seed", "stream", "position"), key, strict=True))
    expected = guided_sample(logits, (2.0, 1.0), **options, **names)
    found = interpreter.call(
        guided_sample_triton, logits, 2.0, 1.0, options.get("temperature", 1.0),
        options.get("top_k", 0), options.get("top_p", 1.0), *key, 0,
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert found[0] == 30 and found[1] in (40, 50) and found[2] == 500


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 5e-324])
def test_sampler_at_a_very_low_temperature_takes_the_most_likely(interpreter: Interpreter, temperature: float) -> None:
    logits = torch.randn(1, 4, 517, generator=torch.Generator().manual_seed(1))
    found = interpreter.call(guided_sample_triton, logits, 1.0, 1.0, temperature, 0, 1.0, *[torch.arange(4)] * 3, 0)
    assert torch.equal(found, logits[0].argmax(1))


def test_sampler_keeps_ties_as_the_cpu_path_does(interpreter: Interpreter) -> None:
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0]).expand(1, 16, 5)
    key = [torch.arange(16)] * 3
    found = interpreter.call(guided_sample_triton, logits, 1.0, 1.0, 1.0, 2, 1.0, *key, 0)
    names = dict(zip(("seed", "stream", "position"), key, strict=True))
    assert torch.equal(found, guided_sample(logits, top_k=2, **names))
    assert set(found.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [4, 21])
def test_nearest_code(interpreter: Interpreter, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(37, width, generator=generator).to(dtype)
    codebook = torch.randn(150, width, generator=generator).to(dtype)
    codebook[75] = codebook[3]  # a tie, for which the lowest index wins
    z[5] = codebook[3]
    blocks = {"BLOCK_VECTORS": 64, "BLOCK_CODES": 64, "BLOCK_EXACT": 64}
    found = interpreter.call(nearest_code_triton, z, codebook, blocks)
    assert torch.equal(found, reference.nearest_code(z, codebook))


def packed(codes: Tensor) -> Tensor:
    """Rows of a codebook as the products of the search take them."""
    num_codes, width = codes.shape
    found, longest = torch.empty(num_codes, packed_width(width)), torch.zeros(1)
    sizes = {"PACKED_WIDTH": packed_width(width), "BLOCK": 16}
    launch(pack_kernel, (triton.cdiv(num_codes, 16),), codes, codes, found, longest, num_codes, width, **sizes)
    torch.testing.assert_close(longest[0], 0.5 * codes.square().sum(1).max())
    return found


@pytest.mark.parametrize("width", [4, 21])
def test_packed_slack_bounds_the_error_of_scores(interpreter: Interpreter, width: int) -> None:
    """Also where each addition of a product cuts off what is below the 24 bits of its sum."""
    generator = torch.Generator().manual_seed(width)
    z, codes = (torch.randn(n, width, generator=generator) for n in (40, 64))
    rows = interpreter.call(packed, codes).double()
    assert torch.equal(rows, ((rows.float().view(torch.int32) & -0x2000).view(torch.float32)).double())  # 11 bits each
    upper = ((z.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    lower = (((z - upper).view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    factors = torch.cat([-torch.stack([upper, lower, upper], -1).flatten(1), torch.ones(40, 3)], 1).double()
    total = torch.zeros(40, 64, dtype=torch.float64)
    for place in range(3 * width + 3):
        total += factors[:, place, None] * rows[:, place]
        unit = 2.0 ** (total.abs().clamp(min=1e-30).log2().floor() - 23)
        total = (total / unit).trunc() * unit
    exact = 0.5 * codes.double().square().sum(1) - z.double() @ codes.double().T
    norms = codes.double().norm(dim=1)
    bound = packed_slack(width) * norms * (z.double().norm(dim=1, keepdim=True) + norms)
    assert bool(((total - exact).abs() <= 0.5 * bound).all())


@pytest.mark.parametrize("size", [1e-20, 1e15])
def test_nearest_code_of_small_and_of_large_numbers(interpreter: Interpreter, size: float) -> None:
    """Products below the normal numbers are not told apart by their scores."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = (size * torch.randn(n, 4, generator=generator) for n in (20, 100))
    blocks = {"BLOCK_VECTORS": 32, "BLOCK_CODES": 64, "BLOCK_EXACT": 64}
    assert torch.equal(interpreter.call(nearest_code_triton, z, codebook, blocks), reference.nearest_code(z, codebook))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_nearest_code_of_many_features(interpreter: Interpreter, dtype: torch.dtype) -> None:
    """In tables of ten rows; every third vector lies between two codes, which float32 cannot tell apart."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 64, generator=generator).to(dtype) for n in (13, 70))
    codebook[35:] = codebook[:35]
    codebook[40:] += torch.full((30, 64), 1e-7).to(dtype)
    z[::3] = codebook[20:25] + 0.01
    expected = reference.nearest_code(z, codebook)
    z = torch.cat([z, torch.full((1, 64), torch.nan, dtype=dtype)])
    found = interpreter.call(nearest_code_wide, z, codebook, 4 * 70 * 10, 64)
    assert torch.equal(found[:13], expected) and 0 <= int(found[13]) < 70


def test_nearest_code_far_from_the_origin(interpreter: Interpreter) -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 4, generator=generator) + 3000.0 for n in (20, 100))
    blocks = {"BLOCK_VECTORS": 32, "BLOCK_CODES": 64, "BLOCK_EXACT": 64}
    found = interpreter.call(nearest_code_triton, z, codebook, blocks)
    assert torch.equal(found, reference.nearest_code(z, codebook))


def test_norm_rotation_and_gate(interpreter: Interpreter) -> None:
    """One size of each; `test_kernels_triton_fused.py` has the others."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 2, 5, 3, 12, generator=generator)
    weight, angles = torch.rand(12, generator=generator), torch.rand(1, 5, 6, generator=generator)
    cos, sin = (torch.cat(pair, -1)[:, :, None] for pair in ((angles.cos(),) * 2, (-angles.sin(), angles.sin())))
    exact, scale = x.double().requires_grad_(), weight.double().requires_grad_()
    normed = reference.rms_norm(exact, scale, 1e-5)
    turned, gated = reference.rotary(normed, angles.double()), reference.swiglu(exact, normed)
    out, inverse = interpreter.call(norm_rotary_triton, x, weight, cos, sin, 1e-5)
    found = interpreter.call(norm_rotary_backward_triton, grad, x, weight, inverse, cos, sin)
    expected = torch.autograd.grad(turned, (exact, scale), grad.double(), retain_graph=True)
    own, inverse = interpreter.call(rms_norm_triton, x, weight, 1e-5)
    pairs = [(out, turned), *zip(found, expected, strict=True), (own, normed)]
    found = interpreter.call(rms_norm_backward_triton, grad, x, weight, inverse)
    pairs += zip(found, torch.autograd.grad(normed, (exact, scale), grad.double(), retain_graph=True), strict=True)
    pairs.append((interpreter.call(swiglu_triton, x, own), gated))
    assert all(relative_error(ours, theirs) < 2e-6 for ours, theirs in pairs)


@pytest.mark.parametrize("op", CASES)
def test_random_cases(interpreter: Interpreter, op: str) -> None:
    """The first of those of `test_kernels_random.py`."""
    assert interpreter.call(failures, op, 0, 3, kernels=True) == []


@pytest.mark.slow
def test_tuning_script_runs() -> None:
    """Its times say nothing here, but on a GPU's clock it must not fail."""
    script = Path(__file__).parents[1] / "benchmarks" / "kernels_tune.py"
    sizes = ["--length", "64", "--head-width", "16", "--vocab", "512", "--width", "64", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(script), "--device", "cpu", *sizes],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = {line[:24].strip() for line in done.stdout.splitlines()}
    both = {"forward", "backward, keys", "backward, queries"}
    assert kernels == both | {f"packed {name}" for name in both} | {"loss", "loss and gradients"}
