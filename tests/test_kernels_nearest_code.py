"""The chunked codebook search returns exactly what the full table of distances says."""

from __future__ import annotations

import pytest
import torch

from emu_kernels import nearest_code, reference
from emu_kernels.nearest_code.cpu import rounding_slack
from emu_kernels.testing import peak_cpu_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 19, 4), (200, 130, 3), (50, 64, 40)])
def test_indices_equal_the_full_table(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    num_vectors, num_codes, width = shape
    generator = torch.Generator().manual_seed(num_vectors)
    z = torch.randn(num_vectors, width, generator=generator).to(dtype)
    codebook = torch.randn(num_codes, width, generator=generator).to(dtype)
    found = nearest_code(z, codebook)
    assert found.dtype == torch.int64
    assert torch.equal(found, reference.nearest_code(z, codebook))


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5, 0.5], [-1.0, 1.0]])
    assert nearest_code(z, codebook).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("shift", [100.0, 3000.0])
def test_a_codebook_far_from_the_origin_is_searched_exactly(shift: float) -> None:
    """|e|^2 - 2 z.e in float32 is off by far more than the distances here."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(300, 4, generator=generator) + shift
    z = torch.randn(500, 4, generator=generator) + shift
    assert torch.equal(nearest_code(z, codebook), reference.nearest_code(z, codebook))


def test_codes_that_nearly_coincide_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(1, 6, generator=generator) + 1e-6 * torch.randn(200, 6, generator=generator)
    z = torch.randn(100, 6, generator=generator)
    assert torch.equal(nearest_code(z, codebook), reference.nearest_code(z, codebook))


@pytest.mark.parametrize("width", [4, 8, 64, 256])
def test_rounding_slack_bounds_the_error_of_scores(width: int) -> None:
    """And is not so wide that many vectors need the search in float64."""
    generator = torch.Generator().manual_seed(width)
    z, codebook = torch.randn(100, width, generator=generator), torch.randn(1000, width, generator=generator)
    exact = 0.5 * codebook.double().square().sum(1) - z.double() @ codebook.double().T
    rounded = torch.addmm(0.5 * codebook.square().sum(1), z, codebook.T, alpha=-1.0)
    code_norms = codebook.double().norm(dim=1)
    bound = rounding_slack(width, torch.float32) * code_norms * (z.double().norm(dim=1, keepdim=True) + code_norms)
    assert bool(((rounded - exact).abs() <= 0.5 * bound).all())
    two_best = exact.topk(2, largest=False).values
    assert ((two_best[:, 1] - two_best[:, 0])[:, None] < bound).any(1).float().mean() <= 0.02


def test_result_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(6000, 4, generator=generator), torch.randn(512, 4, generator=generator)
    together = nearest_code(z, codebook)
    assert torch.equal(torch.cat([nearest_code(part, codebook) for part in z.split(701)]), together)


def test_strided_inputs_without_gradient() -> None:
    z = torch.randn(4, 30).t().requires_grad_()
    codebook = torch.randn(20, 8)[:, ::2].requires_grad_()
    found = nearest_code(z, codebook)
    assert not found.requires_grad
    assert torch.equal(found, reference.nearest_code(z, codebook))


def test_no_vectors_give_no_codes() -> None:
    assert nearest_code(torch.zeros(0, 4), torch.zeros(5, 4)).shape == (0,)


def test_compiled_equals_eager_and_passes_opcheck() -> None:
    z, codebook = torch.randn(30, 4), torch.randn(11, 4)
    compiled = torch.compile(lambda z: nearest_code(z * 2.0, codebook) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(z), nearest_code(z * 2.0, codebook) + 1)
    torch.library.opcheck(torch.ops.emu_kernels.nearest_code.default, (z, codebook))


def test_the_table_of_distances_is_never_held() -> None:
    """1,024 x 32,768 float32 distances take 128 MiB."""
    z, codebook = torch.randn(1024, 4), torch.randn(32_768, 4)
    assert peak_cpu_bytes(lambda: nearest_code(z, codebook)) < 8 * 2**20


BAD_ARGUMENTS = {
    "z of three axes": ({"z": torch.zeros(2, 3, 4)}, ValueError, "z must"),
    "integer z": ({"z": torch.zeros(7, 4, dtype=torch.int64)}, TypeError, "z must"),
    "z without features": ({"z": torch.zeros(7, 0), "codebook": torch.zeros(5, 0)}, ValueError, "z has no"),
    "codebook without entries": ({"codebook": torch.zeros(0, 4)}, ValueError, "codebook"),
    "codebook of another width": ({"codebook": torch.zeros(5, 3)}, ValueError, "codebook"),
    "codebook of another dtype": ({"codebook": torch.zeros(5, 4, dtype=torch.float64)}, TypeError, "codebook"),
    "codebook on another device": ({"codebook": torch.zeros(5, 4, device="meta")}, ValueError, "codebook"),
    "z that is not finite": ({"z": torch.full((7, 4), torch.nan)}, ValueError, "z has"),
    "codebook that is not finite": ({"codebook": torch.full((5, 4), torch.inf)}, ValueError, "codebook has"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_is_named(name: str) -> None:
    changes, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        nearest_code(**{"z": torch.zeros(7, 4), "codebook": torch.zeros(5, 4)} | changes)
