"""The fused head and loss against its plain definition: values, gradients, skipped tokens, slices, bad input, memory."""

import pytest
import torch
from torch import Tensor

from emu_kernels import linear_cross_entropy, reference

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
    ranges = torch.tensor([[4, 19], [6, 20], [0, vocab]]).repeat(num_tokens, 1)[:num_tokens]
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
