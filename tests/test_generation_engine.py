"""The engine against a plain loop that recomputes everything with the whole head, for every kind of block."""

from __future__ import annotations

import itertools

import pytest
import torch

from emu.documents import CodeSegment
from emu.generation import Engine
from emu.generation.linear import TILE, LinearBackend
from emu.generation.sampling import Sampling, make_keys
from emu.layouts import Emu3Layout, Emu35Layout
from emu.model import StaticCache
from emu.vocabulary import Vocabulary
from tests.engine_toys import VOCABULARY, Letters, negative, prompt, small


def layout_of(kind=Emu3Layout, vocabulary=VOCABULARY):
    return kind(vocabulary, Letters())


@torch.no_grad()
def plain_codes(model, layout, ids, unconditional, template, sampling, keys):
    """No cache, no batch, no slice, no fusion: all logits at each place, masked by the grammar."""
    written = ids.new_empty(0)
    for place in range(len(template)):
        first, count = template.allowed(place)
        if template.forced[place] >= 0:
            token = template.forced[place]
        else:
            rows = [ids] if unconditional is None else [ids, unconditional]
            logits = torch.stack([model(torch.cat([row, written])[None]).logits[0, -1:] for row in rows])
            outside = torch.ones(logits.shape[-1], dtype=torch.bool)
            outside[first : first + count] = False
            logits = logits.log_softmax(-1).masked_fill(outside, float("-inf"))[..., first : first + count]
            token = first + keys.draw(logits, sampling, place)[0]
        written = torch.cat([written, token.reshape(1)])
    return template.read(written)


@pytest.mark.parametrize("kind", [Emu3Layout, Emu35Layout])
@pytest.mark.parametrize(
    "modality, grid, meta",
    [("image", (3, 4), None), ("image", (1, 1), None), ("video", (2, 2, 3), {"frames": 8, "fps": 4})],
)
@pytest.mark.parametrize("guidance, temperature", [(1.0, 0.0), (3.0, 0.0), (2.0, 1.0)])
def test_the_engine_equals_a_plain_loop(kind, modality, grid, meta, guidance, temperature):
    layout, model = layout_of(kind), small(qk_norm=True)
    prompts = [prompt(layout, text, modality, grid, meta) for text in ("abc", "", "hello1abcdef".replace("o", "e"))]
    found = Engine(model, layout).generate_codes(
        prompts, grid=grid, guidance_scale=guidance, temperature=temperature, top_k=9, seed=[1, 2, 3]
    )
    sampling, template = Sampling(guidance, temperature, 9, 1.0), layout.block(modality, grid)
    for row, ids in enumerate(prompts):
        unconditional = negative(layout, ids) if guidance != 1 else None
        keys = make_keys(row + 1, 1, 1, torch.device("cpu"))
        expected = plain_codes(model, layout, ids, unconditional, template, sampling, keys)
        assert torch.equal(found[row], expected)
    assert len(found.unique()) > 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_row_does_not_depend_on_its_batch(deterministic):
    layout, model = layout_of(), small()
    engine = Engine(model, layout, deterministic=deterministic)
    prompts = [prompt(layout, "abcdefghij"[: n % 7]) for n in range(8)]
    batch = engine.generate_codes(prompts, grid=(3, 4), seed=list(range(8)))
    for row, ids in enumerate(prompts):
        assert torch.equal(engine.generate_codes([ids], grid=(3, 4), seed=row)[0], batch[row])


@pytest.mark.parametrize("head_dim, heads, kv_heads", [(8, 4, 2), (6, 3, 3), (16, 4, 1)])
@torch.no_grad()
def test_deterministic_logits_are_equal_bit_for_bit(head_dim, heads, kv_heads):
    model = small(head_dim=head_dim, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=43)
    layout = layout_of()
    rows = [prompt(layout, "abcdefghij"[:n]) for n in (9, 2, 5, 0, 3)]
    following = torch.randint(0, VOCABULARY.size, (5, 6))

    def logits(numbers):
        linear, cache = LinearBackend(model, TILE), StaticCache(model.config, 0, 0, dtype=model.dtype, device="cpu")
        cache.reserve(len(numbers), 64)
        cache.extend([0] * len(numbers))
        cache.expect([len(rows[n]) for n in numbers], prompts=range(len(numbers)))
        prompts = torch.nn.utils.rnn.pad_sequence([rows[n] for n in numbers], batch_first=True)
        seen = []
        for part in (prompts, *following[numbers].split((1, 2, 1, 2), 1)):
            hidden = model.forward_block(part, cache, linear, by_row=True)
            seen.append(linear.head(((7, 33),))(hidden[:, -1]))
        return torch.stack(seen[1:], 1)

    together = logits([0, 1, 2, 3, 4])
    for numbers in ([0], [3], [1, 2], [4, 3, 0]):
        assert torch.equal(logits(numbers), together[numbers])


def test_streams_are_equal_prompts_with_other_noise():
    layout, model = layout_of(), small()
    engine = Engine(model, layout)
    prompts = [prompt(layout, "ab"), prompt(layout, "cdefg")]
    found = engine.generate_codes(prompts, grid=(3, 4), seed=7, streams=3).unflatten(0, (2, 3))
    assert len({tuple(codes.flatten().tolist()) for codes in found[0]}) == 3
    assert torch.equal(engine.generate_codes(prompts[1:], grid=(3, 4), seed=7)[0], found[1, 0])
    twice = engine.generate_codes([prompts[0]] * 2, grid=(3, 4), seed=7)
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[0], found[0, 0])


def test_guidance_of_one_runs_no_second_row():
    layout, model = layout_of(), small()
    rows = []
    run = model.forward_tokens

    def counted(ids, *arguments, **options):
        rows.append(len(ids))
        return run(ids, *arguments, **options)

    model.forward_tokens = counted
    engine = Engine(model, layout)
    prompts = [prompt(layout, "ab"), prompt(layout, "cdefg")]
    engine.generate_codes(prompts, grid=(3, 4), guidance_scale=1.0)
    assert set(rows) == {2}
    engine.generate_codes(prompts, grid=(3, 4), guidance_scale=1.5)
    assert rows[-1] == 4


def test_passes_are_one_per_code():
    layout, model = layout_of(), small()
    engine = Engine(model, layout)
    engine.generate_codes([prompt(layout, "ab")] * 2, grid=(3, 4))
    stats = engine.last_stats
    assert (stats.sequences, stats.tokens, stats.passes, stats.tokens_per_pass) == (2, 24, 12, 1.0)


def test_negative_prompts_of_any_length_equal_runs_alone():
    layout, model = layout_of(), small()
    engine = Engine(model, layout)
    prompts = [prompt(layout, text) for text in ("ab", "abcdefg", "c")]
    negatives = [prompt(layout, text) for text in ("mmmm", "", "nnnnnnnnn")]
    together = engine.generate_codes(prompts, negatives, grid=(3, 4), seed=5)
    for row in range(3):
        alone = engine.generate_codes(prompts[row : row + 1], negatives[row : row + 1], grid=(3, 4), seed=5)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(engine.generate_codes(prompts, grid=(3, 4), seed=5), together)


def test_a_negative_prompt_without_header_is_used_as_it_is_and_warned_about():
    layout, model = layout_of(), small()
    ids, bare = prompt(layout, "abc"), torch.tensor([VOCABULARY.controls["bos"], 4, 5])
    with pytest.warns(UserWarning, match="without the header"):
        found = Engine(model, layout).generate_codes([ids], [bare], grid=(3, 4), temperature=0)
    sampling, keys = Sampling(3.0, 0.0), make_keys(0, 1, 1, torch.device("cpu"))
    assert torch.equal(found[0], plain_codes(model, layout, ids, bare, layout.block("image", (3, 4)), sampling, keys))


def test_given_frames_stay_and_the_rest_follows_from_them():
    layout, model = layout_of(), small()
    grid, meta = (3, 2, 2), {"frames": 12, "fps": 4}
    prompts = [prompt(layout, text, "video", grid, meta) for text in ("ab", "cdefg")]
    engine = Engine(model, layout)
    whole = engine.generate_codes(prompts, grid=grid, seed=3)
    for known in (1, 2, 3):
        again = engine.generate_codes(prompts, grid=grid, seed=3, prefix_codes=whole[:, :known])
        assert torch.equal(again, whole)  # the noise belongs to the position, not to the number of passes
    other = engine.generate_codes(prompts, grid=grid, seed=3, prefix_codes=(whole[:, :1] + 1) % 24)
    assert torch.equal(other[:, 0], (whole[:, 0] + 1) % 24) and not torch.equal(other[:, 1:], whole[:, 1:])
    shared = engine.generate_codes(prompts, grid=grid, prefix_codes=whole[0, :2])
    assert torch.equal(shared[1, :2], whole[0, :2])


def test_rows_are_announced_as_they_finish():
    layout, model = layout_of(), small()
    grid, meta, heard = (2, 3, 4), {"frames": 8, "fps": 4}, []
    prompts = [prompt(layout, text, "video", grid, meta) for text in ("ab", "cdefg")]
    codes = Engine(model, layout).generate_codes(
        prompts,
        grid=grid,
        prefix_codes=torch.zeros(1, 3, 4, dtype=torch.int64),
        on_row=lambda row, part: heard.append((row, part)),
    )
    assert [row for row, _ in heard] == [3, 4, 5]
    assert torch.equal(torch.stack([part for _, part in heard], 1), codes[:, 1])


def test_whatever_is_generated_parses_back():
    generator = torch.Generator().manual_seed(0)
    layouts, model = [layout_of(Emu3Layout), layout_of(Emu35Layout)], small()
    for trial, layout in itertools.product(range(6), layouts):
        axes = torch.randint(1, 5, (3,), generator=generator).tolist()
        modality, grid, meta = (
            ("image", tuple(axes[:2]), {}) if trial % 2 else ("video", tuple(axes), {"frames": 4 * axes[0], "fps": 8})
        )
        prompts = [prompt(layout, "abcdef"[: trial + k], modality, grid, meta) for k in range(2)]
        codes = Engine(model, layout).generate_codes(
            prompts, grid=grid, seed=trial, top_p=0.9, guidance_scale=1.0 + trial
        )
        eos = torch.tensor([layout.vocabulary.controls["eos"]])
        for ids, grid_codes in zip(prompts, codes, strict=True):
            sequence = torch.cat([ids, layout.block(modality, grid).fill(grid_codes), eos])
            last = layout.parse(sequence)[-1]
            assert isinstance(last, CodeSegment) and torch.equal(last.codes, grid_codes)


def test_weights_that_change_between_calls_are_seen():
    layout, model = layout_of(), small(hidden_size=256, intermediate_size=256)
    engine = Engine(model, layout)
    prompts = [prompt(layout, "abc")]
    before = engine.generate_codes(prompts, grid=(3, 4), temperature=0)
    for parameter in model.parameters():
        parameter.data.mul_(-0.7)
    after = engine.generate_codes(prompts, grid=(3, 4), temperature=0)
    assert not torch.equal(before, after)
    assert torch.equal(after, Engine(model, layout).generate_codes(prompts, grid=(3, 4), temperature=0))


def test_a_model_in_training_generates_without_dropout_and_stays_in_training():
    layout, model = layout_of(), small(residual_dropout=0.5, attention_dropout=0.5, embedding_dropout=0.5)
    engine = Engine(model, layout)
    calm = engine.generate_codes([prompt(layout, "abc")], grid=(3, 4))
    model.train()
    assert torch.equal(engine.generate_codes([prompt(layout, "abc")], grid=(3, 4)), calm)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_generate_too(dtype):
    layout, model = layout_of(), small().to(dtype)
    codes = Engine(model, layout).generate_codes([prompt(layout, "abc"), prompt(layout, "")], grid=(3, 4))
    assert codes.shape == (2, 3, 4) and codes.dtype == torch.int64


BAD = [
    ({"prompt_ids": []}, ValueError, "at least one prompt"),
    ({"prompt_ids": torch.tensor([1, 2])}, TypeError, "pass a list"),
    ({"prompt_ids": [torch.tensor([1.0])]}, TypeError, "1-D tensor of ids"),
    ({"prompt_ids": [torch.tensor([1, 999])]}, ValueError, "holds id 999"),
    ({"prompt_ids": [torch.tensor([41, 3])]}, ValueError, "does not end in a header"),
    ({"grid": (4, 4)}, ValueError, "announces image"),
    ({"grid": (3,)}, ValueError, "no modality has a grid of 1 axes"),
    ({"modality": "smell"}, ValueError, "smell"),
    ({"seed": [1, 2, 3]}, ValueError, "3 seeds for 1 prompts"),
    ({"seed": 2**64}, ValueError, "64 bits"),
    ({"temperature": -1}, ValueError, "temperature"),
    ({"top_k": -1}, ValueError, "top_k"),
    ({"top_p": 0.0}, ValueError, "top_p"),
    ({"guidance_scale": float("nan")}, ValueError, "guidance_scale"),
    ({"streams": 0}, ValueError, "streams"),
    ({"window": 0}, ValueError, "window"),
    ({"negative_ids": []}, ValueError, "at least one"),
    ({"prefix_codes": torch.zeros(1, 1, 3, dtype=torch.int64)}, ValueError, "prefix_codes has shape"),
    ({"prefix_codes": torch.full((1, 1, 4), 24)}, ValueError, "the codebook has 24"),
]


@pytest.mark.parametrize("changes, kind, words", BAD, ids=[f"{list(c)[0]}-{w}" for c, _, w in BAD])
def test_bad_arguments_are_refused_before_any_work(changes, kind, words):
    layout, model = layout_of(), small()
    model.forward_tokens = None  # any work would fail otherwise
    arguments = {"prompt_ids": [prompt(layout, "ab")], "grid": (3, 4), **changes}
    with pytest.raises(kind, match=words):
        Engine(model, layout).generate_codes(**arguments)


def test_a_layout_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="trained together"):
        Engine(small(), layout_of(vocabulary=Vocabulary.build(41, {"vision": 24})))
