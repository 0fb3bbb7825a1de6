"""Generation on a CUDA device: recorded passes give the tokens of the CPU, alone or beside others, and the host never waits for them."""

from __future__ import annotations

import pytest
import torch

from emu.generation import Batcher, Engine, Sampling, TextRequest, device_passes
from emu.generation.device_passes import RecordedPasses
from emu.generation.linear import LinearBackend
from tests.engine_toys import filled_cache, step_model
from tests.gpu_waits import nothing_waits
from tests.test_generation_batcher import LAYOUT, VOCABULARY, Schedules, alone, engine_of, picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(engine: Engine) -> Engine:
    engine.model.to("cuda")
    return engine


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the passes that were recorded."""
    found: list[tuple[int, ...]] = []
    decode = device_passes.decode

    def noted(model, linear, cache, ids, places):
        if torch.cuda.is_current_stream_capturing():
            found.append(tuple(ids.shape))
        return decode(model, linear, cache, ids, places)

    monkeypatch.setattr(device_passes, "decode", noted)
    return found


@pytest.mark.parametrize("window", [1, 4])
def test_codes_are_those_of_the_cpu(recordings: list[tuple[int, ...]], window: int) -> None:
    requests = [picture(words, seed=seed, window=window) for seed, words in enumerate(("abc", "", "fedcba"))]
    expected = [alone(engine_of(deterministic=False), one) for one in requests]
    batcher = Batcher(on_gpu(engine_of(deterministic=False)))
    tickets = [batcher.submit(one) for one in requests]
    batcher.run()
    assert all(torch.equal(ticket.result(0), codes) for ticket, codes in zip(tickets, expected, strict=True))
    assert {tokens for _, tokens in recordings} == {window}


def test_text_is_that_of_the_cpu(recordings: list[tuple[int, ...]]) -> None:
    ids = torch.tensor([VOCABULARY.control("bos"), *LAYOUT.encode_text("abc")])
    one = TextRequest(ids, Sampling(), 40)
    assert torch.equal(alone(on_gpu(engine_of(end_bias=0.0)), one), alone(engine_of(end_bias=0.0), one))
    assert recordings == [(1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_request_of_a_deterministic_batch_has_the_tokens_that_it_has_alone(dtype: torch.dtype) -> None:
    schedules = Schedules(on_gpu(engine_of(dtype=dtype)), 24)
    assert sum(schedules.run(seed) for seed in range(10)) > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_passes_equal_plain_ones(dtype: torch.dtype) -> None:
    model = step_model("cuda", dtype, layers=3)
    with torch.no_grad():
        caches = [filled_cache(model, 5, 1500, [1200, 7, 700]) for _ in range(2)]
        linear = LinearBackend(model)
        passes, limit = RecordedPasses(model, linear, caches[1]), 2e-5 if dtype == torch.float32 else 4e-2
        for step in range(8):
            ids = (torch.arange(6, device="cuda").view(3, 2) * 97 + step) % 1000
            expected, found = model.forward_block(ids, caches[0], linear), passes.run(ids)
            assert (found - expected).norm() < limit * expected.norm()
        with nothing_waits():
            passes.run(ids)
