"""Packed and tiled products against plain ones."""

import pytest
import torch
from torch import nn

from emu.generation.linear import TILE, LinearBackend, _rows_are_independent
from emu.model import EmuConfig, EmuForCausalLM


def model_of(width: int, dtype=torch.float32) -> EmuForCausalLM:
    sizes = {
        "vocab_size": 300,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return EmuForCausalLM(EmuConfig(**sizes)).to(dtype)


@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("width", [36, 256, 520])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (8, 1), (5, 7)], ids=str)
@torch.no_grad()
def test_products_equal_the_layers(tile, width, shape):
    model = model_of(width)
    backend, attention = LinearBackend(model, tile), model.model.layers[0].self_attn
    x = torch.randn(*shape, width)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    for found, layer in zip(backend(x, *layers), layers, strict=True):
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    ranges = ((3, 120), (200, 1))
    expected = torch.cat([model.project(x, *span) for span in ranges], -1)
    torch.testing.assert_close(backend.head(ranges)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [36, 256])
@torch.no_grad()
def test_tiles_make_a_row_independent_of_the_others(width):
    model = model_of(width)
    backend, layer = LinearBackend(model, TILE), model.model.layers[0].mlp.up_proj
    x = torch.randn(21, width)
    (whole,) = backend(x, layer)
    for rows in (slice(0, 1), slice(20, 21), slice(5, 16)):
        assert torch.equal(backend(x[rows], layer)[0], whole[rows])


def test_a_product_that_depends_on_the_place_of_a_row_is_noticed():
    sample = torch.randn(TILE, 16)
    assert _rows_are_independent(lambda x: x * 2, sample)
    assert not _rows_are_independent(lambda x: x + torch.arange(TILE)[:, None], sample)
    assert not _rows_are_independent(lambda x: x + x.sum(), sample)


@torch.no_grad()
def test_layers_of_another_kind_are_called_as_they_are():
    model = model_of(256)
    attention = model.model.layers[0].self_attn
    plain = attention.q_proj

    class Adapted(nn.Module):
        in_features = 256

        def forward(self, x):
            return plain(x) + 1

    attention.q_proj = Adapted()
    x = torch.randn(2, 1, 256)
    for tile in (None, TILE):
        found = LinearBackend(model, tile)(x, attention.q_proj, attention.k_proj)[0]
        torch.testing.assert_close(found, plain(x) + 1, rtol=1e-5, atol=1e-5)


def test_changed_weights_are_noticed():
    model = model_of(36)
    backend = LinearBackend(model)
    assert backend.is_current()
    model.lm_head.weight.data[0, 0] += 1e-3
    assert not backend.is_current()
