"""The model against transformers' Emu3 on random weights."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Emu3ForCausalLM, Emu3TextConfig

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.model import CACHE

LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 1000000.0}
SHAPES = [  # width, feed-forward, query heads, key heads, rope
    (64, 96, 4, 4, PLAIN),
    (64, 96, 4, 2, PLAIN),
    (48, 128, 6, 1, LINEAR),
    (96, 64, 3, 3, DYNAMIC),
    (128, 352, 8, 2, {**PLAIN, "rope_theta": 500.0}),
]


def pair(width, wide, heads, kv_heads, rope, dtype=torch.float32):
    """transformers' model and ours with the same weights."""
    sizes = {
        "vocab_size": 101,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 16,
        "rope_parameters": dict(rope),
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    theirs = Emu3ForCausalLM._from_config(Emu3TextConfig(**sizes), attn_implementation="sdpa")
    ours = EmuForCausalLM(EmuConfig(**sizes))
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).eval(), ours.to(dtype).eval()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_logits_equal_those_of_transformers(shape, dtype, tolerance):
    theirs, ours = pair(*shape, dtype=dtype)
    ids = torch.randint(3, 101, (2, 24))
    expected = theirs(ids).logits
    assert expected.std() > 0.3  # a model that says something
    torch.testing.assert_close(ours(ids).logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_treated_as_in_transformers(side):
    theirs, ours = pair(*SHAPES[1], dtype=torch.float64)
    ids, mask = torch.randint(3, 101, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[0, slice(0, 6) if side == "left" else slice(14, 20)] = 0
    for positions in (None, (mask.cumsum(1) - 1).clamp_min(0)):
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        found = ours(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-11, atol=1e-11)
    unmasked = ours(ids).logits[0][mask[0].bool()]
    assert side == "right" or (unmasked - found[0][mask[0].bool()]).abs().max() > 1e-2


def test_gradients_equal_those_of_transformers():
    theirs, ours = pair(*SHAPES[1], dtype=torch.float64)
    ids = torch.randint(3, 101, (2, 24))
    theirs(ids, labels=ids).loss.backward()
    ours(ids, labels=ids).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("padded", [False, True])
def test_generate_writes_what_transformers_writes(padded):
    theirs, ours = pair(*SHAPES[1])
    ids, mask = torch.randint(3, 101, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    if padded:
        mask[0, :4] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": 16,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
    static = ours.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, theirs.generate(ids, **options))


def test_a_saved_model_comes_back_through_the_auto_class(tmp_path):
    _, ours = pair(*SHAPES[2])
    ours.save_pretrained(tmp_path, max_shard_size="50KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is EmuForCausalLM and len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.randint(3, 101, (1, 8))
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_a_cache_is_taken_under_both_of_transformers_names():
    """From 5.24 on `cache`, before `past_key_values`; outputs call it what this version of transformers does, without a warning."""
    _, ours = pair(*SHAPES[1])
    ids = torch.randint(3, 101, (2, 12))
    expected = ours(ids).logits[:, 8:]
    for name in ("cache", "past_key_values"):
        first = ours(ids[:, :8], use_cache=True)
        assert CACHE in first and type(first[CACHE]) is DynamicCache
        found = ours(ids[:, 8:], **{name: first[CACHE]}).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="the cache is given twice"):
        ours(ids, cache=DynamicCache(), past_key_values=DynamicCache())


def test_our_use_of_transformers_is_not_deprecated(tmp_path, capfd):
    _, ours = pair(*SHAPES[1])
    ids = torch.randint(3, 101, (1, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        ours(ids, labels=ids).loss.backward()
        ours.save_pretrained(tmp_path)
        EmuForCausalLM.from_pretrained(tmp_path)(ids, use_cache=True)
    assert "deprecated" not in "".join(capfd.readouterr())
