"""Windows: several tokens in one pass, and exactly the tokens of one at a time."""

import pytest
import torch

from emu.generation import Engine
from emu.generation.speculation import Speculator
from emu.layouts import Emu3Layout, Emu35Layout
from emu.model import StaticCache
from emu.vocabulary import Vocabulary
from tests.engine_toys import small

CODEBOOKS = {"vision": 24, "pair.0": 24, "pair.1": 9}
VOCABULARY = Vocabulary.build(30, {"vision": 24})
CONTROLS = VOCABULARY.controls


def engine_of(kind=Emu3Layout, vocabulary=VOCABULARY, deterministic=False, dtype=torch.float64, init=0.3) -> Engine:
    model = small(vocabulary, initializer_range=init).to(dtype)
    return Engine(model, kind(vocabulary), deterministic=deterministic)


def prompts_of(lengths, controls=CONTROLS):
    return [torch.tensor([controls["bos"], *range(n), controls["boi"], 5, 6, controls["image"]]) for n in lengths]


@pytest.mark.parametrize("window", [2, 3, 7, 50])
@pytest.mark.parametrize("kind, grid", [(Emu3Layout, (4, 5)), (Emu35Layout, (3, 4)), (Emu3Layout, (2, 2, 3))])
@pytest.mark.parametrize(
    "settings", [{"top_k": 6}, {"temperature": 0.0}, {"guidance_scale": 1.0, "top_p": 0.8}], ids=str
)
def test_a_window_writes_the_tokens_of_single_steps(window, kind, grid, settings):
    engine = engine_of(kind)
    arguments = {"grid": grid, "seed": [1, 2, 3], **settings}
    single = engine.generate_codes(prompts_of([3, 9, 0]), **arguments)
    assert engine.last_stats.tokens_per_pass == 1
    assert torch.equal(engine.generate_codes(prompts_of([3, 9, 0]), window=window, **arguments), single)


def test_a_sequence_does_not_wait_for_the_others_of_its_batch():
    """Every sequence keeps its own place: alone it takes as many passes as its own guesses need."""
    engine = engine_of()
    together = engine.generate_codes(prompts_of([3, 9, 0, 5]), grid=(4, 4), seed=[1, 2, 3, 4], window=5)
    passes_together, alone = engine.last_stats.passes, []
    for row, ids in enumerate(prompts_of([3, 9, 0, 5])):
        assert torch.equal(engine.generate_codes([ids], grid=(4, 4), seed=row + 1, window=5)[0], together[row])
        alone.append(engine.last_stats.passes)
    assert passes_together == max(alone)


def test_given_frames_and_streams_and_rows_work_with_windows():
    engine, heard = engine_of(), []
    grid = (3, 2, 2)
    single = engine.generate_codes(prompts_of([3, 1]), grid=grid, seed=4, streams=2)
    again = engine.generate_codes(
        prompts_of([3, 1]), grid=grid, seed=4, streams=2, window=4, on_row=lambda row, codes: heard.append((row, codes))
    )
    assert torch.equal(single, again)
    assert [row for row, _ in heard] == list(range(6))
    assert torch.equal(torch.stack([codes for _, codes in heard], 1), single.flatten(1, 2))
    begun = engine.generate_codes(prompts_of([3, 1]), grid=grid, seed=4, prefix_codes=single[::2, :1], window=4)
    assert torch.equal(begun, single[::2])


def test_windows_are_deterministic_bit_for_bit_too():
    engine = engine_of(deterministic=True, dtype=torch.float32)
    prompts = prompts_of([3, 9, 0, 5, 1])
    together = engine.generate_codes(prompts, grid=(4, 4), seed=7, window=4)
    for row, ids in enumerate(prompts):
        assert torch.equal(engine.generate_codes([ids], grid=(4, 4), seed=7, window=4)[0], together[row])


def test_several_codebooks_are_guessed_each_from_its_own():
    from emu.modalities import Modality, register

    class Pair(Modality):
        name, rank, codebook = "pair", 2, "pair"

        def accepts(self, value):
            return False

        def encode(self, value, codec):
            raise NotImplementedError

        def decode(self, segment, codec):
            raise NotImplementedError

        def meta_text(self, grid, meta):
            return "pair"

        def parse_meta(self, text):
            return None

        def codebook_sizes(self, codec):
            return (24, 9)

    register("pair", Pair())
    vocabulary = Vocabulary.build(30, CODEBOOKS)
    engine = engine_of(vocabulary=vocabulary)
    prompts = prompts_of([2, 5], vocabulary.controls)
    single = engine.generate_codes(prompts, grid=(3, 3), modality="pair", seed=2)
    assert single.shape == (2, 3, 3, 2)
    assert torch.equal(engine.generate_codes(prompts, grid=(3, 3), modality="pair", seed=2, window=6), single)


def test_a_predictable_model_takes_few_passes():
    engine = engine_of(init=1e-4)  # no opinion beside the noise, so that guesses do not change
    engine.generate_codes(prompts_of([3]), grid=(6, 6), window=8, guidance_scale=1.0)
    assert engine.last_stats.tokens_per_pass > 4


def test_accepting_wrong_guesses_would_be_noticed(monkeypatch):
    engine = engine_of()
    single = engine.generate_codes(prompts_of([3]), grid=(4, 5), seed=1)

    def settle_all(self, places, found):
        self.ids.scatter_(1, places, found)
        self.done = (self.done + places.shape[1]).clamp_max(self.length)

    monkeypatch.setattr(Speculator, "_settle", settle_all)
    assert not torch.equal(engine.generate_codes(prompts_of([3]), grid=(4, 5), seed=1, window=4), single)


@torch.no_grad()
@pytest.mark.parametrize("by_row", [False, True])
def test_rows_that_were_cut_at_different_ends_go_on_from_there(by_row):
    model = engine_of().model
    ids = torch.randint(0, VOCABULARY.size, (3, 30))
    cache = StaticCache(model.config, 3, 40, dtype=model.dtype, device="cpu")
    cache.offset = torch.tensor([0, 4, 2])
    model.forward_block(ids[:, :10], cache, by_row=by_row)
    ends = torch.tensor([10, 10, 10])
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        block = torch.stack([ids[row, end : end + 5] for row, end in enumerate(ends.tolist())])
        hidden = model.forward_block(block, cache, by_row=by_row)
        for row, end in enumerate(ends.tolist()):
            fresh = model.model(
                ids[row : row + 1, int(cache.offset[row]) : end + 5],
                torch.arange(end + 5 - int(cache.offset[row]))[None],
                _causal(),
            )
            torch.testing.assert_close(hidden[row], fresh[0, -5:], rtol=1e-6, atol=1e-6)
        ends = ends + torch.randint(0, 5, (3,), generator=generator)
        cache.truncate(ends)


def _causal():
    from emu.model.attention import attend_packed

    return attend_packed(None)
