"""Large pictures are decoded in tiles: the same pixels, in the memory of a small one."""

import pytest
import torch

from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.vision.layers import FrameNorm
from emu_tokenizers.vision.tiling import Moments, decode_tiled, halo_rows, levels_to_cut, tile_rows

SMALL = {"base_channels": 8, "latent_channels": 4, "embed_dim": 4, "codebook_size": 32, "norm_groups": 4}
ARCHITECTURES = {
    "emu3": {"channel_multiplier": (1, 2, 2, 4), "attn_resolutions": (3,)},
    "emu3.5": {
        "spatial_factor": 16,
        "temporal_factor": 1,
        "channel_multiplier": (1, 1, 2, 2, 4),
        "attn_resolutions": (4,),
        "spatial_norm": False,
    },
    "patches": {"spatial_factor": 8, "channel_multiplier": (1, 2, 2), "attn_resolutions": (2,), "num_res_blocks": 1},
}


def make(name: str, dtype: torch.dtype = torch.float64) -> VisionTokenizer:
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(VisionTokenizerConfig(**SMALL, **ARCHITECTURES[name])).to(dtype).eval()
    for parameter in tokenizer.decoder.parameters():  # fresh residual branches end in zeros and would hide a mistake
        torch.nn.init.normal_(parameter, std=0.15)
    return tokenizer


def codes_of(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(32, (batch, height, width), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_tiles_are_the_picture(name, dtype, tolerance):
    tokenizer = make(name, dtype)
    codes = codes_of(37, 3)
    whole = tokenizer.decode(codes)
    tokenizer.max_pixels_per_picture = 0
    tokenizer.max_pixels_per_pass = 22 * 3 * tokenizer.spatial_factor**2
    tiled = tokenizer.decode(codes)
    assert (tiled - whole).abs().max() < tolerance * whole.abs().max()
    assert not torch.equal(tiled, whole)  # it did go through in tiles
    assert all(module.given is None for module in tokenizer.modules() if isinstance(module, FrameNorm))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_its_halo_a_tile_is_another_picture(name, monkeypatch):
    tokenizer = make(name)
    codes = codes_of(30, 2)
    whole = tokenizer.decode(codes)
    needed = halo_rows(tokenizer.decoder, levels_to_cut(tokenizer.decoder, 60, 1))
    tokenizer.max_pixels_per_picture, tokenizer.max_pixels_per_pass = 0, 1
    monkeypatch.setattr("emu_tokenizers.vision.tiling.halo_rows", lambda *_: needed // 4)
    assert (tokenizer.decode(codes) - whole).abs().max() > 1e-6


def test_pictures_of_a_batch_and_frames_of_a_clip_keep_their_own_statistics():
    tokenizer = make("emu3")
    images, clip = codes_of(30, 2, batch=2), codes_of(30, 2)[:, None].expand(-1, 2, -1, -1)
    wanted = tokenizer.decode(images), tokenizer.decode(clip, frames=5)
    tokenizer.max_pixels_per_picture = 0
    tokenizer.max_pixels_per_pass = 1
    found = tokenizer.decode(images), tokenizer.decode(clip, frames=5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    decoder = tokenizer.decoder
    latents, cells = torch.randn(2, 4, 30, 2, dtype=torch.float64), torch.randn(2, 4, 30, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(decode_tiled(decoder, latents, cells, 1), decoder.spatial(latents, cells))


def test_levels_with_attention_run_whole():
    torch.manual_seed(0)
    config = VisionTokenizerConfig(**SMALL, channel_multiplier=(1, 2), spatial_factor=2, attn_resolutions=(0,))
    assert levels_to_cut(VisionTokenizer(config).decoder, 10_000, 1) == 0
    assert levels_to_cut(make("emu3").decoder, 100, 100 * 64) == 0
    assert levels_to_cut(make("emu3").decoder, 10_000, 1) == 3


def test_only_levels_whose_maps_are_too_large_are_cut():
    decoder = make("emu3").decoder  # widths 8, 16, 16, 32: at half the resolution half the memory
    assert [levels_to_cut(decoder, 100, 100 * 64 // share) for share in (1, 2, 3, 8, 9)] == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("height, rows, halo", [(37, 20, 6), (5, 1, 6), (12, 12, 0), (100, 13, 6)])
def test_tiles_cover_every_row_once(height, rows, halo):
    tiles = tile_rows(height, rows, halo)
    assert [row for tile in tiles for row in range(tile.first, tile.last)] == list(range(height))
    assert all(tile.top == max(tile.first - halo, 0) for tile in tiles)
    assert all(tile.bottom == min(tile.last + halo, height) for tile in tiles)


def test_moments_of_parts_are_those_of_the_whole():
    maps = torch.randn(2, 6, 9, 5) * 3 + 100
    moments = Moments()
    for part in maps.split((2, 3, 4), dim=2):
        moments.add(part, 3)
    mean, variance = moments.values(torch.float64)
    whole = maps.double().unflatten(1, (3, -1)).flatten(2)
    torch.testing.assert_close(mean, whole.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, whole.var(2, correction=0), rtol=1e-4, atol=0)


def test_a_failure_leaves_no_statistics_behind(monkeypatch):
    tokenizer = make("emu3")
    tokenizer.max_pixels_per_picture, tokenizer.max_pixels_per_pass = 0, 1
    monkeypatch.setattr(tokenizer.decoder.conv_out, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenizer.decode(codes_of(30, 2))
    assert all(module.given is None for module in tokenizer.modules() if isinstance(module, FrameNorm))
