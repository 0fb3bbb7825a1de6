"""The sampler draws from exactly the distribution that it should, with noise that depends on its key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from emu_kernels import guided_sample, reference
from emu_kernels.guided_sample import cpu
from emu_kernels.guided_sample.cpu import exponential_noise, philox, to_exponential

NUM_DRAWS = 20_000
WARPS = {
    "plain": {},
    "guided": {"rows": 2, "scale": 3.0},
    "guided twice": {"rows": 3, "scale": (3.0, 1.5)},
    "cool": {"temperature": 0.6},
    "top-k": {"rows": 2, "scale": 2.0, "top_k": 5},
    "top-p": {"top_p": 0.7},
    "all": {"rows": 2, "scale": 2.5, "temperature": 1.3, "top_k": 7, "top_p": 0.8},
}


def make_logits(rows: int, num_candidates: int = 13) -> Tensor:
    """One case (R, 1, K)."""
    return torch.randn(rows, 1, num_candidates, generator=torch.Generator().manual_seed(rows))


def keys(batch: int, seed: int = 0, stream: int = 0) -> dict[str, Tensor]:
    """Key of a batch of consecutive positions."""
    return {
        "seed": torch.full((batch,), seed),
        "stream": torch.full((batch,), stream),
        "position": torch.arange(batch),
    }


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Wilson-Hilferty score of Pearson's statistic, standard normal under the null hypothesis."""
    kept = probabilities > 0
    expected = counts.sum() * probabilities[kept]
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = kept.sum() - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5


@pytest.mark.parametrize("name", WARPS)
def test_draws_follow_the_distribution(name: str) -> None:
    options = dict(WARPS[name])
    logits = make_logits(options.pop("rows", 1))
    probabilities = reference.guided_probabilities(logits, **options)[0].numpy()
    drawn = guided_sample(logits.expand(-1, NUM_DRAWS, -1), **options, **keys(NUM_DRAWS, seed=11))
    counts = np.bincount(drawn.numpy(), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts, probabilities) < 4


def test_chi_square_notices_a_wrong_distribution() -> None:
    logits = make_logits(1)
    drawn = guided_sample(logits.expand(-1, NUM_DRAWS, -1), temperature=1.2, **keys(NUM_DRAWS, seed=11))
    counts = np.bincount(drawn.numpy(), minlength=13)
    assert chi_square(counts, reference.guided_probabilities(logits)[0].numpy()) > 6


def test_noise_is_precise_where_the_winners_are() -> None:
    """Noise of low resolution near zero would draw rare candidates too often."""
    words = np.array([0, 1, 2**20, 2**31, 2**32 - 2**8, 2**32 - 1], dtype=np.uint64)
    exact = -np.log1p(-(words + 0.5) / 2**32)
    noise = to_exponential(words)
    np.testing.assert_allclose(noise[:4], exact[:4], rtol=1e-6)
    np.testing.assert_allclose(noise[4], exact[4], rtol=1e-3)
    assert noise[0] > 0 and noise[5] > 20


@pytest.mark.parametrize("changed", ["seed", "stream", "position", "draw"])
def test_every_part_of_the_key_matters(changed: str) -> None:
    logits = torch.zeros(1, 300, 50)
    key = keys(300)
    first = guided_sample(logits, **key)
    other = (
        guided_sample(logits, **key, draw=1)
        if changed == "draw"
        else guided_sample(logits, **key | {changed: key[changed] + 1000})
    )
    agreement = (first == other).float().mean()
    assert agreement < 0.1


def test_a_row_draws_the_same_in_every_batch() -> None:
    logits = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0))
    key = {name: torch.randint(0, 2**31, (8,)) for name in ("seed", "stream", "position")}
    together = guided_sample(logits, 2.0, top_k=40, top_p=0.9, **key)
    for row in (0, 3, 7):
        part = slice(row, row + 1)
        alone = guided_sample(logits[:, part], 2.0, top_k=40, top_p=0.9, **{n: k[part] for n, k in key.items()})
        assert alone[0] == together[row]


def test_a_large_batch_is_drawn_in_groups_without_a_seam() -> None:
    logits = torch.randn(1, 7, 40_000, generator=torch.Generator().manual_seed(0))
    together = guided_sample(logits, **keys(7))
    alone = [guided_sample(logits[:, i : i + 1], **{n: k[i : i + 1] for n, k in keys(7).items()}) for i in range(7)]
    assert torch.equal(together, torch.cat(alone))


def test_temperature_zero_takes_the_first_of_the_most_likely() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0, 2.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert guided_sample(logits, 3.0, temperature=0.0, **keys(1)).tolist() == [1]
    logits = make_logits(3)
    expected = logits[1] + 1.5 * (logits[2] - logits[1]) + 2.0 * (logits[0] - logits[2])
    assert guided_sample(logits, (2.0, 1.5), temperature=0.0, **keys(1)).tolist() == expected.argmax(1).tolist()


def test_candidates_of_minus_infinity_are_never_drawn() -> None:
    logits = torch.zeros(2, 500, 10)
    logits[:, :, 3:] = -torch.inf
    assert guided_sample(logits, 3.0, **keys(500)).max() == 2
    assert guided_sample(logits, 3.0, top_k=8, top_p=0.99, **keys(500)).max() == 2
    assert guided_sample(logits, 3.0, temperature=0.0, **keys(500)).max() == 0


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_infinite_logits_share_the_draws(options: dict) -> None:
    logits = make_logits(1).repeat(1, 200, 1)
    logits[0, :, [4, 9]] = torch.inf
    draws = guided_sample(logits, **options, **keys(200))
    assert set(draws.tolist()) == {4, 9}
    assert 60 < int((draws == 4).sum()) < 140


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 5e-324])
def test_a_very_low_temperature_takes_the_most_likely(temperature: float) -> None:
    logits = make_logits(1)
    draws = guided_sample(logits, temperature=temperature, **keys(logits.shape[1]))
    assert torch.equal(draws, logits[0].argmax(1))


def test_candidates_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0]).expand(1, 2000, 5)
    assert set(guided_sample(logits, top_k=2, **keys(2000)).tolist()) == {0, 1, 2, 3}
    uniform = torch.zeros(1, 2000, 5)
    assert set(guided_sample(uniform, top_p=0.1, **keys(2000)).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("top_k", [None, 0, 13, 99])
def test_top_k_that_keeps_all_changes_nothing(top_k: int | None) -> None:
    logits = make_logits(2).expand(-1, 200, -1)
    expected = guided_sample(logits, 2.0, **keys(200))
    assert torch.equal(guided_sample(logits, 2.0, top_k=top_k, top_p=1.0, **keys(200)), expected)


def test_noise_of_kept_candidates_alone_gives_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 5, 2**14)
    logits[:, 3] = -torch.inf
    logits[:, 3, 77] = 0.0
    logits[:, 4] = logits[:, 4].round()  # ties
    for options in ({"top_k": 2048}, {"top_k": 7, "top_p": 0.8}, {"top_k": 1}, {"top_k": 300, "temperature": 1e-3}):
        for draw in range(6):
            found = guided_sample(logits, 3.0, draw=draw, **keys(5), **options)
            with monkeypatch.context() as patch:
                patch.setattr(cpu, "MANY", 2**30)
                assert torch.equal(found, guided_sample(logits, 3.0, draw=draw, **keys(5), **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_draw_from_their_values(dtype: torch.dtype) -> None:
    logits = make_logits(2).expand(-1, 100, -1).to(dtype)
    expected = guided_sample(logits.float(), 2.0, **keys(100))
    assert torch.equal(guided_sample(logits, 2.0, **keys(100)), expected)


def test_no_rows_give_no_draws() -> None:
    assert guided_sample(torch.zeros(2, 0, 5), 2.0, **keys(0)).shape == (0,)


def test_logits_are_left_alone() -> None:
    logits = torch.randn(1, 3, 20, requires_grad=True)
    before = logits.detach().clone()
    drawn = guided_sample(logits, top_k=4, top_p=0.5, **keys(3))
    assert torch.equal(logits, before) and not drawn.requires_grad


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 as in its paper, one counter at a time."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of the Random123 library."""
    counter, key = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert plain_philox(counter, key) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert plain_philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seeds = np.array([0, -1, 0x299F31D0A4093822, 7 - 2**63])
    words = philox(seeds, (np.array([0, -1, 3, 2**40 + 5]), np.arange(4), 2**32 - 1), 3)
    positions = [0, 2**32 - 1, 3, 5]
    for row, block in ((0, 0), (1, 2), (2, 1), (3, 2)):
        key = [int(seeds[row]) & 0xFFFFFFFF, (int(seeds[row]) >> 32) & 0xFFFFFFFF]
        assert words[:, row, block].tolist() == plain_philox([block, positions[row], row, 2**32 - 1], key)


def test_noise_is_exponential() -> None:
    noise = exponential_noise(*(np.arange(40) for _ in range(3)), 0, 5000).astype(np.float64).ravel()
    assert abs(noise.mean() - 1) < 0.01 and abs(noise.var() - 1) < 0.03 and noise.min() > 0
    for point in (1e-3, 0.1, 1.0, 3.0):
        expected = 1 - np.exp(-point)
        assert abs((noise < point).mean() - expected) < 5 * (expected / noise.size) ** 0.5


def test_compiled_equals_eager() -> None:
    logits = make_logits(2).expand(-1, 20, -1)
    key = keys(20)

    def function(logits: Tensor) -> Tensor:
        return guided_sample(logits * 2.0, 2.0, top_k=6, top_p=0.9, **key) + 1

    assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(logits), function(logits))


def test_op_passes_opcheck() -> None:
    key = keys(3)
    arguments = torch.randn(2, 3, 9), 2.0, 1.0, 0.8, 4, 0.9, key["seed"], key["stream"], key["position"], 0
    torch.library.opcheck(torch.ops.emu_kernels.guided_sample.default, arguments)


BAD_ARGUMENTS = {
    "logits of two axes": ({"logits": torch.zeros(4, 9)}, ValueError, "logits"),
    "integer logits": ({"logits": torch.zeros(2, 4, 9, dtype=torch.int64)}, TypeError, "logits"),
    "four guidance rows": ({"logits": torch.zeros(4, 4, 9)}, ValueError, "logits"),
    "no guidance rows": ({"logits": torch.zeros(0, 4, 9)}, ValueError, "logits"),
    "no candidates": ({"logits": torch.zeros(2, 4, 0)}, ValueError, "logits"),
    "scale of text": ({"scale": "3"}, TypeError, "scale"),
    "scale of three": ({"scale": (1.0, 2.0, 3.0)}, ValueError, "scale"),
    "scale that is no number": ({"scale": float("nan")}, ValueError, "scale"),
    "seed of another shape": ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, "seed"),
    "float stream": ({"stream": torch.zeros(4)}, TypeError, "stream"),
    "position that is a number": ({"position": 3}, TypeError, "position"),
    "position on another device": (
        {"position": torch.zeros(4, dtype=torch.int64, device="meta")},
        ValueError,
        "position",
    ),
    "negative temperature": ({"temperature": -1.0}, ValueError, "temperature"),
    "negative top-k": ({"top_k": -1}, ValueError, "top_k"),
    "top-p of zero": ({"top_p": 0.0}, ValueError, "top_p"),
    "top-p above one": ({"top_p": 1.1}, ValueError, "top_p"),
    "negative draw": ({"draw": -1}, ValueError, "draw"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_is_named(name: str) -> None:
    changes, error, argument = BAD_ARGUMENTS[name]
    arguments = {"logits": torch.zeros(2, 4, 9), "scale": 2.0, **keys(4)} | changes
    with pytest.raises(error, match=argument):
        guided_sample(**arguments)
