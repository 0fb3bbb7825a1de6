"""Attention over packed rows against its plain definition: masks, gradients, padding, bad input, compiled, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from emu_kernels import attention, document_bounds, reference
from emu_kernels.attention.op import ENVIRONMENT, choose_backend, torch_attention
from emu_kernels.attention.row_tiles import LONG, SHORT, TILE
from emu_kernels.testing import peak_cpu_bytes

MASKS = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 5},
    "full window": {"window": 7, "causal": False},
    "documents": {"segment_ids": True},
    "full documents": {"segment_ids": True, "causal": False},
    "documents and window": {"segment_ids": True, "window": 9},
    "offsets": {"cu_seqlens": True},
    "full offsets and window": {"cu_seqlens": True, "causal": False, "window": 40},
}


def make_inputs(batch: int, length: int, dtype: torch.dtype = torch.float64, heads: tuple[int, int] = (4, 2)) -> list:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, num_heads, 6) for num_heads in (heads[0], heads[1], heads[1])]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def make_documents(batch: int, length: int) -> Tensor:
    """Rows with documents of several lengths, of one id that comes back after a break, and padding at the end and inside."""
    segment_ids = torch.arange(length).div(length // 3 + 1, rounding_mode="floor")[None].repeat(batch, 1) + 1
    segment_ids[0, :3] = 5
    segment_ids[0, 3:4] = 0
    segment_ids[0, 4:7] = 5
    segment_ids[-1, length - length // 4 :] = 0
    return segment_ids


def mask_options(name: str, batch: int, length: int) -> tuple[int, dict]:
    """Number of rows and the mask arguments with the placeholders of MASKS replaced."""
    options = dict(MASKS[name])
    if "segment_ids" in options:
        options["segment_ids"] = make_documents(batch, length)
    if "cu_seqlens" in options:
        batch = 1
        options["cu_seqlens"] = torch.tensor([0, 1, 5, 5, length // 2, length - 2], dtype=torch.int32)
    return batch, options


def compare(inputs: list[Tensor], options: dict, softcap: float | None = None, scale: float | None = None) -> None:
    """Output and gradients against the definition."""
    found = attention(*inputs, **options, softcap=softcap, scale=scale)
    mask = reference.visible(*inputs[0].shape[:2], **options)
    expected = reference.attention(*inputs, mask, softcap, scale)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@pytest.mark.parametrize("length", [17, SHORT + 3, 2 * TILE + 61])
@pytest.mark.parametrize("name", MASKS)
def test_output_and_gradients_equal_the_definition(name: str, length: int) -> None:
    batch, options = mask_options(name, 3, length)
    compare(make_inputs(batch, length), options)


@pytest.mark.parametrize("length", [17, 2 * TILE + 5])
@pytest.mark.parametrize("name", ["causal", "documents", "full offsets and window"])
def test_soft_cap_and_scale_equal_the_definition(name: str, length: int) -> None:
    batch, options = mask_options(name, 2, length)
    compare(make_inputs(batch, length), options, softcap=1.5, scale=0.7)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 1), (6, 2)])
def test_query_heads_share_key_heads(heads: tuple[int, int]) -> None:
    compare(make_inputs(2, 11, heads=heads), {})


@pytest.mark.parametrize("name", ["causal", "documents and window"])
def test_gradcheck_passes(name: str) -> None:
    _, options = mask_options(name, 1, 6)
    q, k, v = make_inputs(1, 6, heads=(2, 1))
    for softcap in (None, 2.0):
        assert torch.autograd.gradcheck(lambda *x, cap=softcap: attention(*x, **options, softcap=cap), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [33, 2 * TILE + 5, LONG + 50])
def test_error_is_no_larger_than_that_of_the_plain_computation(dtype: torch.dtype, length: int) -> None:
    inputs = make_inputs(2, length, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    mask = reference.visible(2, length)
    truth, plain, found = (
        reference.attention(*exact, mask),
        reference.attention(*inputs, mask),
        attention(*inputs),
    )
    assert found.dtype == dtype
    grad = torch.randn(truth.shape, dtype=torch.float64)
    results = [(found, plain, truth)]
    gradients = [
        torch.autograd.grad(x, i, grad.to(x.dtype)) for x, i in ((found, inputs), (plain, inputs), (truth, exact))
    ]
    slack = 4 * torch.finfo(dtype).eps
    for ours, theirs, true in results + list(zip(*gradients, strict=True)):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + slack * true.norm()


def test_a_packed_row_equals_its_documents_apart() -> None:
    q, k, v = make_inputs(1, 50)
    cu_seqlens = torch.tensor([0, 13, 20, 50], dtype=torch.int32)
    packed = attention(q, k, v, cu_seqlens=cu_seqlens, window=12)
    pieces = [attention(*(x[:, a:b] for x in (q, k, v)), window=12) for a, b in ((0, 13), (13, 20), (20, 50))]
    torch.testing.assert_close(packed, torch.cat(pieces, 1))


@pytest.mark.parametrize("length", [20, 300])
def test_padding_neither_gives_nor_takes(length: int) -> None:
    inputs = make_inputs(2, length)
    segment_ids = torch.ones(2, length, dtype=torch.int32)
    segment_ids[1, 12:] = 0
    out = attention(*inputs, segment_ids=segment_ids)
    assert torch.equal(out[1, 12:], torch.zeros_like(out[1, 12:]))
    gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert all(torch.equal(g[1, 12:], torch.zeros_like(g[1, 12:])) for g in gradients)


def test_views_of_one_projection_give_the_same_result() -> None:
    generator = torch.Generator().manual_seed(0)
    joint = torch.randn(2, 21, 8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    parts = joint.split((4, 2, 2), dim=2)
    found = attention(*parts)
    expected = attention(*(x.contiguous() for x in parts))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), joint), torch.autograd.grad(expected.square().sum(), joint)
    )


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1)])
def test_empty_and_single_positions_work(shape: tuple[int, int]) -> None:
    inputs = make_inputs(*shape)
    out = attention(*inputs)
    assert out.shape == inputs[0].shape
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("name", ["causal", "documents", "offsets"])
def test_compiled_equals_eager(name: str) -> None:
    batch, options = mask_options(name, 2, 23)
    inputs = make_inputs(batch, 23)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 0.5, k, v, **options).tanh()

    eager = function(*inputs)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), inputs), torch.autograd.grad(eager.sum(), inputs))


def test_ops_pass_opcheck() -> None:
    inputs = make_inputs(2, 9)
    options = make_documents(2, 9), None, True, 3, 0.0, 0.5
    torch.library.opcheck(torch.ops.emu_kernels.attention.default, (*inputs, *options))
    fixed = [x.detach() for x in inputs]
    out, lse = torch.ops.emu_kernels.attention(*fixed, *options)
    backward = torch.ops.emu_kernels.attention_backward.default
    torch.library.opcheck(backward, (torch.ones_like(out), *fixed, out, lse, *options))


BAD_ARGUMENTS = {
    "q of three axes": ({"q": torch.zeros(7, 4, 6)}, ValueError, "q must"),
    "integer q": ({"q": torch.zeros(2, 7, 4, 6, dtype=torch.int64)}, TypeError, "q must"),
    "q without heads": ({"q": torch.zeros(2, 7, 0, 6)}, ValueError, "q has no heads"),
    "k without heads": ({"k": torch.zeros(2, 7, 0, 6), "v": torch.zeros(2, 7, 0, 6)}, ValueError, "k has no heads"),
    "q without features": ({name: torch.zeros(2, 7, 2, 0) for name in "qkv"}, ValueError, "q has no features"),
    "k of another length": ({"k": torch.zeros(2, 8, 2, 6)}, ValueError, "k must"),
    "v of another width": ({"v": torch.zeros(2, 7, 2, 5)}, ValueError, "v must"),
    "heads that do not divide": ({"q": torch.zeros(2, 7, 3, 6)}, ValueError, "multiple"),
    "k of another dtype": ({"k": torch.zeros(2, 7, 2, 6, dtype=torch.float64)}, TypeError, "k has dtype"),
    "v on another device": ({"v": torch.zeros(2, 7, 2, 6, device="meta")}, ValueError, "v is on"),
    "segments of another shape": ({"segment_ids": torch.zeros(2, 6, dtype=torch.int64)}, ValueError, "segment_ids"),
    "float segments": ({"segment_ids": torch.zeros(2, 7)}, TypeError, "segment_ids"),
    "offsets for two rows": ({"cu_seqlens": torch.tensor([0, 7], dtype=torch.int32)}, ValueError, "cu_seqlens"),
    "offsets of int64": ({"cu_seqlens": torch.tensor([0, 7])}, TypeError, "cu_seqlens"),
    "no offsets": ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, "cu_seqlens"),
    "bounds without documents": (
        {"bounds": torch.zeros(2, 7, 2, dtype=torch.int32)},
        ValueError,
        "bounds are given without",
    ),
    "bounds of another shape": (
        {"bounds": torch.zeros(7, 2, dtype=torch.int32), "segment_ids": torch.ones(2, 7, dtype=torch.int64)},
        ValueError,
        "bounds must",
    ),
    "window of zero": ({"window": 0}, ValueError, "window"),
    "negative soft cap": ({"softcap": -1.0}, ValueError, "softcap"),
    "scale of zero": ({"scale": 0.0}, ValueError, "scale"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_is_named(name: str) -> None:
    changes, error, message = BAD_ARGUMENTS[name]
    arguments = dict(zip("qkv", make_inputs(2, 7, torch.float32), strict=True)) | changes
    with pytest.raises(error, match=message):
        attention(**arguments)


@pytest.mark.parametrize("offsets", [[1, 7], [0, 5, 3, 7], [0, 8], [0, -2, 7]])
def test_offsets_that_do_not_increase_within_the_row_are_refused(offsets: list[int]) -> None:
    inputs = make_inputs(1, 7)
    with pytest.raises(ValueError, match="cu_seqlens"):
        attention(*inputs, cu_seqlens=torch.tensor(offsets, dtype=torch.int32))


def test_segments_and_offsets_together_are_refused() -> None:
    inputs = make_inputs(1, 7)
    with pytest.raises(ValueError, match="give one of them"):
        attention(
            *inputs,
            cu_seqlens=torch.tensor([0, 7], dtype=torch.int32),
            segment_ids=torch.ones(1, 7, dtype=torch.int64),
        )


def test_memory_grows_with_length_not_with_its_square() -> None:
    """One table of 4096 x 4096 float32 scores takes 64 MiB, the inputs and gradients less than one."""
    inputs = [torch.randn(1, 4096, 1, 8, requires_grad=True) for _ in range(3)]
    assert peak_cpu_bytes(lambda: attention(*inputs).sum().backward()) < 8 * 2**20
    assert peak_cpu_bytes(lambda: attention(*inputs, window=100, softcap=5.0).sum().backward()) < 8 * 2**20
    assert peak_cpu_bytes(lambda: attention(*inputs, softcap=5.0).sum().backward()) < 24 * 2**20
    halves = [x[:, 2048:] if number == 0 else x for number, x in enumerate(inputs)]
    assert peak_cpu_bytes(lambda: attention(*halves, query_offset=2048).sum().backward()) < 24 * 2**20


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": LONG // 2}])
def test_long_documents_among_short_ones_equal_themselves_apart(options: dict) -> None:
    ends = torch.tensor([0, 30, LONG + 90, LONG + 100], dtype=torch.int32)
    q, k, v = (torch.randn(1, LONG + 100, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    found = attention(q, k, v, cu_seqlens=ends, **options)
    parts = [
        attention(*(x[:, first:last] for x in (q, k, v)), **options) for first, last in ends.unfold(0, 2, 1).tolist()
    ]
    grad = torch.randn_like(found)
    torch.testing.assert_close(found, torch.cat(parts, 1))
    mask = reference.visible(1, LONG + 100, cu_seqlens=ends, **options)
    truth = reference.attention(q, k, v, mask)
    pairs = (torch.autograd.grad(x, (q, k, v), grad) for x in (found, truth))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
def test_backends_of_torch_compute_the_same(backend: str) -> None:
    """The dispatcher uses them on a GPU; here each takes the first of torch's own that runs on a CPU."""
    q, k, v = (torch.randn(1, 256, heads, 32) for heads in (4, 2, 2))
    with torch.no_grad():
        found = torch_attention(backend, q, k, v, causal=True, scale=0.2)
        assert torch.allclose(found, attention(q, k, v, scale=0.2), atol=1e-5)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("rows", ["equal rows", "unequal rows"])
def test_what_is_not_finite_stays_in_its_document(rows: str, name: str, value: str) -> None:
    """A bad position in the second of three short documents, and one in padding."""
    ids = torch.tensor([1] * 5 + [2] * 15 + [3] * 18 + [0] * 7).repeat(2, 1)
    if rows == "unequal rows":
        ids[1] = torch.tensor([4] * 30 + [0] * 15)
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": 4, "k": 2, "v": 2, "grad": 4}
    tensors = {n: torch.randn(2, 45, heads, 6, generator=generator) for n, heads in shapes.items()}
    expected = _output_and_gradients(tensors, ids)
    tensors[name][0, [12, 40]] = float(value)
    found = _output_and_gradients(tensors, ids)
    others = ids != 2
    others[1] = rows == "unequal rows"
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[others], theirs[others])
        assert not ours[ids == 0].any()


def _output_and_gradients(tensors: dict[str, Tensor], segment_ids: Tensor) -> tuple[Tensor, ...]:
    inputs = [tensors[name].clone().requires_grad_() for name in "qkv"]
    out = attention(*inputs, segment_ids=segment_ids)
    return out.detach(), *torch.autograd.grad(out, inputs, tensors["grad"])


def test_autocast_ends_at_the_door_of_the_op() -> None:
    """The op's own products run in the dtype of its inputs, and its log-sum-exp comes in the dtype that compilers are told."""
    inputs = make_inputs(1, 33, torch.float32)
    expected = attention(*inputs, softcap=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(*inputs, softcap=2.0)
        lse = torch.ops.emu_kernels.attention(*inputs, None, None, True, 0, 2.0, 0.3)[1]
    assert torch.equal(found, expected)
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
def test_autocast_stays_out_of_torchs_own_attention(backend: str) -> None:
    q, k, v = (torch.randn(1, 64, heads, 16) for heads in (4, 2, 2))
    expected = torch_attention(backend, q, k, v, True, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch_attention(backend, q, k, v, True, 0.3)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_whoever_asks_for_determinism_gets_our_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with FakeTensorMode():
        q = torch.empty(1, 64, 4, 16, device="cuda", dtype=torch.bfloat16)
    assert choose_backend(q, False, None, None) == "cudnn"
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_backend(q, False, None, None) == "triton"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["documents", "offsets"])
def test_bounds_of_documents_are_where_they_begin_and_end(name: str) -> None:
    batch, options = mask_options(name, 2, 23)
    bounds = document_bounds(23, **options)
    assert bounds is not None
    position = torch.arange(23)
    seen = (position >= bounds[..., :1]) & (position < bounds[..., 1:])
    assert torch.equal(seen, reference.visible(batch, 23, causal=False, **options))
    assert (bounds.diff(dim=1) >= 0).all(), "in order along the row, as the kernels' ranges of tiles need"


def test_the_log_sum_exp_refuses_to_be_differentiated() -> None:
    inputs = make_inputs(1, 9)
    lse = torch.ops.emu_kernels.attention(*inputs, None, None, True, 0, 0.0, 0.3)[1]
    assert not lse.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        lse.sum().backward()


PARTS = {"halves": [(0, 30), (30, 60)], "pieces": [(0, 1), (1, 9), (9, 41), (41, 60)], "one position": [(59, 60)]}
"""First and last (exclusive) position of the queries of each rank, in a row of 60; a row of 300 has five times as many."""


@pytest.mark.parametrize("length", [60, 5 * 60])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", MASKS)
def test_queries_of_a_part_attend_as_they_do_in_the_whole_row(name: str, parts: str, length: int) -> None:
    """Outputs side by side and gradients added up are those of the row that ranks share."""
    batch, options = mask_options(name, 2, length)
    inputs = make_inputs(batch, length)
    scale = length // 60
    pieces = [slice(first * scale, last * scale) for first, last in PARTS[parts]]
    q, k, v = inputs
    found = [attention(q[:, own], k, v, **options, query_offset=own.start) for own in pieces]
    whole = attention(*inputs, **options)
    expected = [whole[:, own] for own in pieces]
    torch.testing.assert_close(found, expected)
    grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) for x in found]
    torch.testing.assert_close(*(torch.autograd.grad(x, inputs, grads) for x in (found, expected)))


def test_queries_of_a_part_with_a_soft_cap_and_numbers_that_are_not_finite() -> None:
    _, options = mask_options("documents", 2, 60)
    q, k, v = make_inputs(2, 60)
    bad = v.detach().clone()
    bad[:, 30] = torch.nan  # of the second document
    out = attention(q[:, 10:50], k, bad, **options, softcap=2.0, query_offset=10)
    whole = attention(q, k, bad, **options, softcap=2.0)[:, 10:50]
    torch.testing.assert_close(out, whole, equal_nan=True)
    assert out.isnan().any() and not out[:, :5].isnan().any()


def test_no_queries_of_a_part_have_no_gradient() -> None:
    q, k, v = make_inputs(2, 9)
    out = attention(q[:, 4:4], k, v, query_offset=4)
    assert out.shape == (2, 0, 4, 6)
    assert not any(x.any() for x in torch.autograd.grad(out.sum(), (k, v)))


def test_an_offset_compiles_and_passes_opcheck() -> None:
    q, k, v = make_inputs(2, 9)
    torch.library.opcheck(
        torch.ops.emu_kernels.attention.default, (q[:, 3:7].detach(), k, v, None, None, True, 3, 0.0, 0.5, None, 3)
    )
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)(q[:, 3:7], k, v, query_offset=3)
    torch.testing.assert_close(compiled, attention(q, k, v)[:, 3:7])


@pytest.mark.parametrize("offset", [-1, 4])
def test_an_offset_that_leads_out_of_the_row_is_named(offset: int) -> None:
    q, k, v = make_inputs(2, 9)
    with pytest.raises(
        ValueError, match=f"query_offset is {offset}; 6 queries in a row of 9 keys must begin at 0 to 3"
    ):
        attention(q[:, :6], k, v, query_offset=offset)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_features_may_lie_anywhere_in_memory(axis: int, dtype: torch.dtype) -> None:
    """Also where another axis runs fastest, in rows of several tiles."""
    inputs = make_inputs(2, 210, dtype)
    turned = [x.detach().transpose(axis, 3).contiguous().transpose(axis, 3).requires_grad_() for x in inputs]
    grad = torch.randn(2, 210, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    far = grad.transpose(axis, 3).contiguous().transpose(axis, 3)
    found, expected = (
        [out := attention(*x, window=50), *torch.autograd.grad(out, x, slope)]
        for x, slope in ((turned, far), (inputs, grad))
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
