"""Generation on a CUDA device: recorded passes give the tokens of the CPU, alone or beside others, and the host never waits for them."""

from __future__ import annotations

import pytest
import torch

from emu.generation import Batcher, Engine, Sampling, TextRequest, device_passes
from emu.generation.device_passes import RecordedPasses
from emu.generation.linear import LinearBackend
from emu.model import EmuConfig, EmuForCausalLM, StaticCache
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
    config = EmuConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2048, qk_norm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = EmuForCausalLM(config).to("cuda", dtype).eval()
    caches = []
    with torch.no_grad():
        for _ in range(2):
            cache = StaticCache(config, 0, 0, dtype=dtype, device="cuda")
            cache.reserve(5, 1500)
            cache.extend([0, 0, 0])
            cache.expect([1200, 7, 700])
            model.forward_block(torch.arange(3600, device="cuda").view(3, 1200) % 1000, cache)
            caches.append(cache)
        linear = LinearBackend(model)
        passes, limit = RecordedPasses(model, linear, caches[1]), 2e-5 if dtype == torch.float32 else 4e-2
        for step in range(8):
            ids = (torch.arange(6, device="cuda").view(3, 2) * 97 + step) % 1000
            expected, found = model.forward_block(ids, caches[0], linear), passes.run(ids)
            assert (found - expected).norm() < limit * expected.norm()
        with nothing_waits():
            passes.run(ids)
