"""The fused head and loss against its plain definition: values, gradients, skipped tokens, slices, bad input, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from emu_kernels import linear_cross_entropy, reference
from emu_kernels.linear_cross_entropy import cpu
from emu_kernels.testing import peak_cpu_bytes

OPTIONS = {
    "plain": {},
    "weights and z-loss": {"weights": True, "z_loss": 0.1},
    "soft cap": {"softcap": 2.0},
    "slice": {"vocab_range": (4, 19), "z_loss": 0.05},
    "slice per token": {"vocab_range": "per token", "weights": True, "softcap": 3.0},
}


def make_case(dtype: torch.dtype = torch.float64, num_tokens: int = 13, width: int = 5, vocab: int = 29) -> dict:
    """Inputs whose tokens 3 and 7 are ignored and whose token 5 has weight zero in `weights`."""
    generator = torch.Generator().manual_seed(num_tokens * 1000 + vocab)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    target = torch.randint(6, 20, (num_tokens,), generator=generator)
    target[[3, 7]] = -100
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    weights[5] = 0.0
    ranges = torch.tensor([[4, 19], [6, 15], [0, vocab]]).repeat(num_tokens, 1)[:num_tokens]
    inputs = {"hidden": hidden.to(dtype).requires_grad_(), "weight": weight.to(dtype).requires_grad_()}
    return inputs | {"target": target, "weights": weights, "ranges": ranges}


def pick_options(case: dict, options: dict) -> dict:
    """Replace the placeholders of OPTIONS by the tensors of a case."""
    chosen = dict(options)
    if "weights" in chosen:
        chosen["weights"] = case["weights"]
    if chosen.get("vocab_range") == "per token":
        chosen["vocab_range"] = case["ranges"]
    return chosen


def gradients(value: Tensor, case: dict) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, (case["hidden"], case["weight"]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_equal_the_definition(name: str, reduction: str) -> None:
    case = make_case()
    options = pick_options(case, OPTIONS[name]) | {"reduction": reduction}
    arguments = case["hidden"], case["weight"], case["target"]
    loss, lse, best = linear_cross_entropy(*arguments, **options, return_lse=True, return_argmax=True)
    expected_loss, expected_lse, expected_best = reference.linear_cross_entropy(*arguments, **options)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(lse, expected_lse)
    assert torch.equal(best, expected_best)
    factors = torch.linspace(0.5, 2.0, lse.numel(), dtype=torch.float64)
    found = gradients((loss * factors[: loss.numel()].view(loss.shape)).sum() + (lse * factors).sum(), case)
    wanted = gradients(
        (expected_loss * factors[: loss.numel()].view(loss.shape)).sum() + (expected_lse * factors).sum(), case
    )
    torch.testing.assert_close(found, wanted)


def test_parts_of_a_split_vocabulary_make_the_loss_of_the_whole() -> None:
    """What ranks that hold a slice of the head each exchange: two log-sum-exps and the target's logit per token."""
    case = make_case()
    hidden, weight, target = case["hidden"], case["weight"], case["target"].clamp(min=0)
    parts = []
    for first, count in ((0, 12), (12, 17)):
        anywhere = torch.full_like(target, first)  # the log-sum-exp depends on no target
        parts.append(linear_cross_entropy(hidden, weight, anywhere, vocab_range=(first, count), return_lse=True)[1])
    loss = (torch.logaddexp(*parts) - (hidden * weight[target]).sum(1)).mean()
    expected = linear_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, case), gradients(expected, case))


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck_passes(name: str) -> None:
    case = make_case(num_tokens=8, width=3, vocab=23)
    options = pick_options(case, OPTIONS[name])

    def function(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        mean = linear_cross_entropy(hidden, weight, case["target"], **options)
        each, lse = linear_cross_entropy(hidden, weight, case["target"], **options, reduction="none", return_lse=True)
        return mean, each, lse

    assert torch.autograd.gradcheck(function, (case["hidden"], case["weight"]))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_input_leaves_the_other_gradient_unchanged(frozen: str, reduction: str) -> None:
    case = make_case()
    other = "weight" if frozen == "hidden" else "hidden"
    both = linear_cross_entropy(case["hidden"], case["weight"], case["target"], reduction=reduction).sum()
    expected = torch.autograd.grad(both, case[other])[0]
    case[frozen] = case[frozen].detach()
    one = linear_cross_entropy(case["hidden"], case["weight"], case["target"], reduction=reduction).sum()
    torch.testing.assert_close(torch.autograd.grad(one, case[other])[0], expected)


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_result_does_not_depend_on_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    expected = linear_cross_entropy(case["hidden"], case["weight"], case["target"], z_loss=0.1)
    wanted = gradients(expected, case)
    monkeypatch.setattr(cpu, "sizes", lambda *_: (chunk, 4))
    found = linear_cross_entropy(case["hidden"], case["weight"], case["target"], z_loss=0.1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, case), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_no_larger_than_that_of_the_plain_computation(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "sizes", lambda *_: (70, 50))  # several chunks and blocks of ids
    case = make_case(dtype, num_tokens=300, width=32, vocab=130)
    exact = {"hidden": case["hidden"].detach().double(), "weight": case["weight"].detach().double()}
    exact = {name: value.requires_grad_() for name, value in exact.items()}
    truth = reference.linear_cross_entropy(exact["hidden"], exact["weight"], case["target"])[0]
    plain = reference.linear_cross_entropy(case["hidden"], case["weight"], case["target"])[0]
    fused = linear_cross_entropy(case["hidden"], case["weight"], case["target"])
    assert fused.dtype == torch.float32
    slack = 4 * torch.finfo(torch.float32).eps
    assert abs(fused - truth) <= abs(plain - truth) + slack * truth.abs()
    rows = zip(gradients(fused, case), gradients(plain, case), gradients(truth, exact), strict=True)
    for ours, theirs, true in rows:
        assert ours.dtype == dtype
        assert (ours - true).norm() <= 1.05 * (theirs - true).norm() + slack * true.norm()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("situation", ["no tokens", "all ignored", "all of weight zero"])
def test_nothing_to_learn_from_is_a_zero_loss_with_zero_gradients(situation: str, reduction: str) -> None:
    case = make_case()
    weights = None
    if situation == "no tokens":
        case["hidden"] = case["hidden"].detach()[:0].requires_grad_()
        case["target"] = case["target"][:0]
    elif situation == "all ignored":
        case["target"] = torch.full_like(case["target"], -100)
    else:
        weights = torch.zeros(13)
    loss, lse, best = linear_cross_entropy(
        case["hidden"], case["weight"], case["target"], weights=weights, reduction=reduction, return_lse=True,
        return_argmax=True,
    )  # fmt: skip
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(lse, torch.zeros_like(lse))
    assert bool((best == -1).all())
    for gradient in gradients(loss.sum() + lse.sum(), case):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_skipped_tokens_hold_does_not_matter() -> None:
    case = make_case()
    arguments = case["weight"], case["target"]
    expected = linear_cross_entropy(case["hidden"], *arguments, weights=case["weights"])
    wanted = torch.autograd.grad(expected, case["weight"])
    hidden = case["hidden"].detach().clone()
    hidden[[3, 5, 7]] = torch.nan
    case["target"][5] = 10**9
    hidden.requires_grad_()
    found = linear_cross_entropy(hidden, *arguments, weights=case["weights"])
    torch.testing.assert_close(found, expected)
    d_weight, d_hidden = torch.autograd.grad(found, (case["weight"], hidden))
    torch.testing.assert_close(d_weight, wanted[0])
    assert torch.equal(d_hidden[[3, 5, 7]], torch.zeros(3, 5, dtype=torch.float64))


def test_non_contiguous_inputs_give_the_same_loss_and_gradients() -> None:
    case = make_case()
    expected = linear_cross_entropy(case["hidden"], case["weight"], case["target"])
    wanted = gradients(expected, case)
    strided = {name: case[name].detach().t().contiguous().t().requires_grad_() for name in ("hidden", "weight")}
    target = case["target"].repeat_interleave(2)[::2]
    found = linear_cross_entropy(strided["hidden"], strided["weight"], target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, strided), wanted)


def test_a_master_weight_keeps_its_gradient_in_float32_under_autocast() -> None:
    """Not rounded to 16 bits on the way, so that small contributions of many tokens are not lost."""
    case = make_case(torch.float32, num_tokens=300, width=32, vocab=130)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(case["hidden"], case["weight"], case["target"])
        each = linear_cross_entropy(case["hidden"], case["weight"], case["target"], reduction="none")
    low = [case[name].detach().bfloat16().float().requires_grad_() for name in ("hidden", "weight")]
    expected = linear_cross_entropy(*low, case["target"])
    assert torch.equal(loss, expected)
    wanted = torch.autograd.grad(expected, low[1])[0]
    for found in (
        torch.autograd.grad(loss, case["weight"])[0],
        torch.autograd.grad(each.sum() / 298, case["weight"])[0],
    ):
        assert (found - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "slice per token"])
def test_values_that_are_not_checked_give_the_same_loss(name: str, reduction: str) -> None:
    """Skipped tokens count for nothing although they are computed, whatever they hold."""
    case = make_case()
    options = pick_options(case, OPTIONS[name]) | {"reduction": reduction, "return_lse": True, "return_argmax": True}
    expected = linear_cross_entropy(case["hidden"], case["weight"], case["target"], **options)
    hidden = case["hidden"].detach().clone()
    hidden[[3, 7]] = torch.nan
    wanted = gradients(expected[0].sum() + expected[1].sum(), case)
    case["hidden"] = hidden.requires_grad_()
    found = linear_cross_entropy(hidden, case["weight"], case["target"], **options, check_values=False)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(found[0].sum() + found[1].sum(), case), wanted)


def test_ranges_of_tokens_cannot_stay_unread() -> None:
    case = make_case()
    with pytest.raises(ValueError, match="vocab_range is a tensor"):
        linear_cross_entropy(
            case["hidden"], case["weight"], case["target"], vocab_range=case["ranges"], check_values=False
        )


def test_compilers_keep_out_of_their_graphs_what_waits_for_the_gpu() -> None:
    for op in ("linear_cross_entropy", "linear_cross_entropy_backward"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.emu_kernels, op).default.tags
    for op in ("attention", "attention_backward", "guided_sample", "nearest_code"):
        assert torch.Tag.cudagraph_unsafe not in getattr(torch.ops.emu_kernels, op).default.tags


def test_a_z_loss_that_changes_from_step_to_step_is_compiled_once() -> None:
    """A second time, in fact, when the compiler learns that the number changes."""
    case = make_case(torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    def function(hidden: Tensor, weight: Tensor, z_loss: float) -> Tensor:
        return linear_cross_entropy(hidden, weight, case["target"], z_loss=z_loss)

    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for z_loss in (0.1, 0.2, 0.3, 0.4):
        found, expected = (f(case["hidden"], case["weight"], z_loss) for f in (compiled, function))
        assert torch.equal(found, expected)
    assert counter.frame_count == 2


def test_autocast_computes_in_its_dtype() -> None:
    case = make_case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(case["hidden"], case["weight"], case["target"])
    low = [case[name].detach().bfloat16() for name in ("hidden", "weight")]
    torch.testing.assert_close(loss, linear_cross_entropy(*low, case["target"]))
    assert all(gradient.dtype == torch.float32 for gradient in gradients(loss, case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_equals_eager_with_ignored_targets(name: str, dtype: torch.dtype) -> None:
    """In 16 bits too, whose gradients are scaled and rounded in one pass."""
    torch._dynamo.reset()  # which counts the cases as one function that is compiled again and again
    case = make_case(dtype)
    options = pick_options(case, OPTIONS[name])

    def function(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        loss, lse = linear_cross_entropy(hidden * 1.5, weight, target, **options, return_lse=True)
        each = linear_cross_entropy(hidden, weight, target, **options, reduction="none")
        return loss, lse, each

    def total(results: tuple[Tensor, ...]) -> Tensor:
        return results[0] + 0.1 * results[1].sum() + (results[2] ** 2).sum()

    arguments = case["hidden"], case["weight"], case["target"]
    eager = function(*arguments)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))
    found, expected = gradients(total(compiled), case), gradients(total(eager), case)
    if dtype == torch.float64:  # a compiler adds up the losses' gradients in another order
        torch.testing.assert_close(found, expected)
    else:
        assert all(
            (a - b).norm() <= 2 * torch.finfo(dtype).eps * b.norm() for a, b in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ops_pass_opcheck(reduction: str) -> None:
    case = make_case()
    arguments = (
        case["hidden"],
        case["weight"],
        case["target"],
        case["weights"],
        4,
        19,
        None,
        2.0,
        -100,
        torch.tensor(0.1),
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    fused = torch.ops.emu_kernels.linear_cross_entropy.default
    torch.library.opcheck(fused, (*arguments, reduction, True, reduction != "none", True), test_utils=checks[:3])
    vector = torch.rand(13, dtype=torch.float64)
    recompute = torch.ops.emu_kernels.linear_cross_entropy_backward.default
    tensors = [case[name].detach() for name in ("hidden", "weight")]
    numbers = 4, 19, None, 2.0, True, True
    torch.library.opcheck(recompute, (*tensors, None, vector, None, vector, *numbers), test_utils=checks)


def test_second_derivative_is_refused() -> None:
    case = make_case()
    loss = linear_cross_entropy(case["hidden"], case["weight"], case["target"])
    first = torch.autograd.grad(loss, case["hidden"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(first.sum(), case["hidden"])


BAD_ARGUMENTS = {
    "hidden of three axes": ({"hidden": torch.zeros(2, 3, 5)}, ValueError, "hidden"),
    "hidden that is a list": ({"hidden": [[1.0]]}, TypeError, "hidden"),
    "integer hidden": ({"hidden": torch.zeros(13, 5, dtype=torch.int64)}, TypeError, "hidden"),
    "hidden without features": ({"hidden": torch.zeros(13, 0), "weight": torch.zeros(29, 0)}, ValueError, "hidden"),
    "weight of another width": ({"weight": torch.zeros(29, 4)}, ValueError, "weight"),
    "weight of another dtype": ({"weight": torch.zeros(29, 5, dtype=torch.float64)}, TypeError, "weight"),
    "weight without ids": ({"weight": torch.zeros(0, 5)}, ValueError, "weight"),
    "weight on another device": ({"weight": torch.zeros(29, 5, device="meta")}, ValueError, "weight"),
    "float target": ({"target": torch.zeros(13)}, TypeError, "target"),
    "short target": ({"target": torch.zeros(12, dtype=torch.int64)}, ValueError, "target"),
    "negative target": ({"target": torch.full((13,), -1)}, ValueError, "target"),
    "target beyond the vocabulary": ({"target": torch.full((13,), 29)}, ValueError, "target"),
    "target outside of its range": ({"vocab_range": (3, 9)}, ValueError, "target"),
    "target outside of its own range": ({"vocab_range": torch.tensor([[3, 9]] * 13)}, ValueError, "target"),
    "range beyond the vocabulary": ({"vocab_range": (20, 10)}, ValueError, "vocab_range"),
    "empty range": ({"vocab_range": (20, 0)}, ValueError, "vocab_range"),
    "own range beyond the vocabulary": ({"vocab_range": torch.tensor([[6, 29]] * 13)}, ValueError, "vocab_range"),
    "ranges of another shape": ({"vocab_range": torch.tensor([[6, 2]])}, ValueError, "vocab_range"),
    "weights of another shape": ({"weights": torch.ones(12)}, ValueError, "weights"),
    "integer weights": ({"weights": torch.ones(13, dtype=torch.int64)}, TypeError, "weights"),
    "negative weights": ({"weights": -torch.ones(13)}, ValueError, "weights"),
    "weights that are not finite": ({"weights": torch.full((13,), torch.inf)}, ValueError, "weights"),
    "weights with a gradient": ({"weights": torch.ones(13, requires_grad=True)}, ValueError, "weights"),
    "negative z-loss": ({"z_loss": -0.1}, ValueError, "z_loss"),
    "soft cap of zero": ({"softcap": 0.0}, ValueError, "softcap"),
    "unknown reduction": ({"reduction": "average"}, ValueError, "reduction"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_is_named(name: str) -> None:
    changes, error, argument = BAD_ARGUMENTS[name]
    case = make_case(torch.float32)
    arguments = {key: case[key] for key in ("hidden", "weight", "target")} | changes
    with pytest.raises(error, match=argument):
        linear_cross_entropy(**arguments)


def test_full_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 x 50,000 float32 logits take 98 MiB, and the plain computation holds three tables of that size."""
    monkeypatch.setitem(cpu.BUFFER_BYTES, "cpu", 16 * 2**20)
    hidden, weight = torch.randn(512, 16, requires_grad=True), torch.randn(50_000, 16, requires_grad=True)
    target = torch.randint(0, 50_000, (512,))
    for options in ({}, {"softcap": 20.0}, {"reduction": "none"}):
        peak = peak_cpu_bytes(lambda o=options: linear_cross_entropy(hidden, weight, target, **o).sum().backward())
        assert peak < 30 * 2**20
