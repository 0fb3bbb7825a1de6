"""Blocks after a static cache against one pass over everything."""

import pytest
import torch

from emu.model import EmuConfig, EmuForCausalLM, StaticCache


def small(dtype=torch.float64) -> EmuForCausalLM:
    config = EmuConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=100.0,
        initializer_range=0.3,
        qk_norm=True,
    )
    return EmuForCausalLM(config).to(dtype).eval()


def cache_for(model, rows, capacity=32):
    return StaticCache(model.config, rows, capacity, dtype=model.dtype, device="cpu")


@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (9, 1, 1, 5, 2, 6), (3, 21)], ids=str)
@torch.no_grad()
def test_blocks_equal_one_pass(sizes):
    model = small()
    ids, cache = torch.randint(0, 61, (2, 24)), cache_for(model, 2)
    hidden = torch.cat([model.forward_block(part, cache) for part in ids.split(sizes, 1)], 1)
    torch.testing.assert_close(model.project(hidden), model(ids).logits, rtol=1e-6, atol=1e-6)
    assert cache.length == 24


@torch.no_grad()
def test_rows_of_unequal_length_equal_rows_alone():
    model = small()
    lengths = [5, 11, 8]
    rows = [torch.randint(0, 61, (length + 7,)) for length in lengths]
    prompts = torch.stack(
        [torch.cat([torch.zeros(11 - n, dtype=torch.int64), r[:n]]) for r, n in zip(rows, lengths, strict=True)]
    )
    cache = cache_for(model, 3)
    cache.offset = torch.tensor([11 - n for n in lengths])
    hidden = [model.forward_block(prompts, cache)[:, -1:]]
    following = torch.stack([row[n:] for row, n in zip(rows, lengths, strict=True)])
    hidden += [model.forward_block(part, cache) for part in following.split((1, 3, 1, 2), 1)]
    logits = model.project(torch.cat(hidden, 1))
    for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        torch.testing.assert_close(logits[row], model(ids[None]).logits[0, length - 1 :], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_wrong_offset_is_noticed():
    model = small()
    ids = torch.randint(0, 61, (2, 9))
    right, wrong = cache_for(model, 2), cache_for(model, 2)
    right.offset, wrong.offset = torch.tensor([3, 0]), torch.tensor([2, 0])
    first, second = (model.forward_block(ids, cache)[:, -1] for cache in (right, wrong))
    assert (first[0] - second[0]).abs().max() > 1e-2
    torch.testing.assert_close(first[1], second[1])


@torch.no_grad()
def test_truncating_forgets_exactly_the_tail():
    model = small()
    ids, cache = torch.randint(0, 61, (1, 20)), cache_for(model, 1)
    model.forward_block(ids[:, :12], cache)
    model.forward_block(torch.randint(0, 61, (1, 6)), cache)
    cache.truncate(10)
    hidden = model.forward_block(ids[:, 10:], cache)
    torch.testing.assert_close(model.project(hidden), model(ids).logits[:, 10:], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_slice_of_the_head_is_a_slice_of_the_logits():
    model = small()
    hidden = torch.randn(2, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(model.project(hidden, 7, 11), model.project(hidden)[..., 7:18])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.project(hidden, 55, 10)


def test_a_cache_says_what_does_not_fit():
    model = small()
    cache = cache_for(model, 2, capacity=4)
    with pytest.raises(ValueError, match="do not fit a cache of 4 slots"):
        model.forward_block(torch.zeros(2, 5, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="3 rows, the cache 2"):
        model.forward_block(torch.zeros(3, 1, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(1)
