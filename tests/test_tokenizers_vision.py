"""The vision tokenizer: shapes, clips of any length, chunks, batches, saving, and what it refuses."""

import json

import pytest
import torch

from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.vision.weight_files import read_weights

TINY = {
    "spatial_factor": 4,
    "channel_multiplier": (1, 2),
    "base_channels": 8,
    "num_res_blocks": 1,
    "attn_resolutions": (1,),
    "latent_channels": 4,
    "embed_dim": 4,
    "codebook_size": 32,
    "norm_groups": 4,
}


def make_tokenizer(seed: int = 0, **overrides) -> VisionTokenizer:
    torch.manual_seed(seed)
    return VisionTokenizer(VisionTokenizerConfig(**{**TINY, **overrides})).eval()


def random_pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def tokenizer() -> VisionTokenizer:
    return make_tokenizer()


def test_image_codes_have_one_cell_per_factor(tokenizer):
    codes = tokenizer.encode(random_pixels(2, 3, 8, 12))
    assert codes.shape == (2, 2, 3)
    assert codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == (2, 3, 8, 12)


@pytest.mark.parametrize("frames", range(1, 18))
def test_a_clip_of_any_length_comes_back_with_its_length(tokenizer, frames):
    codes = tokenizer.encode(random_pixels(1, frames, 3, 8, 8))
    assert codes.shape == (1, -(-frames // 4), 2, 2)
    assert tokenizer.decode(codes, frames=frames).shape == (1, frames, 3, 8, 8)
    assert tokenizer.decode(codes).shape[1] == 4 * codes.shape[1]


def test_the_tail_of_a_clip_repeats_its_last_frame(tokenizer):
    clip = random_pixels(1, 5, 3, 8, 8)
    filled = torch.cat((clip, clip[:, -1:].expand(-1, 3, -1, -1, -1)), dim=1)
    assert torch.equal(tokenizer.encode(clip), tokenizer.encode(filled))


@pytest.mark.parametrize("chunk", ["causal", "independent"])
def test_an_image_and_its_one_frame_clip_have_the_same_codes_and_pixels(chunk):
    tokenizer = make_tokenizer(chunk=chunk)
    image = random_pixels(2, 3, 8, 8)
    codes = tokenizer.encode(image)
    assert torch.equal(codes, tokenizer.encode(image[:, None])[:, 0])
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes[:, None], frames=1)[:, 0])


def test_trimming_decodes_the_same_frames(tokenizer):
    codes = tokenizer.encode(random_pixels(1, 7, 3, 8, 8))
    torch.testing.assert_close(tokenizer.decode(codes, frames=6), tokenizer.decode(codes)[:, :6])


def test_independent_groups_do_not_see_each_other():
    tokenizer = make_tokenizer(chunk="independent").double()
    clip = random_pixels(1, 8, 3, 8, 8).double()
    codes = tokenizer.encode(clip)
    assert torch.equal(codes[:, :1], tokenizer.encode(clip[:, :4]))
    assert torch.equal(codes[:, 1:], tokenizer.encode(clip[:, 4:]))
    apart = torch.cat([tokenizer.decode(codes[:, i : i + 1]) for i in range(2)], dim=1)
    torch.testing.assert_close(tokenizer.decode(codes), apart)


def test_a_causal_clip_sees_the_past_and_not_the_future(tokenizer):
    tokenizer = make_tokenizer(codebook_size=512)
    clip = random_pixels(1, 8, 3, 8, 8)
    changed = clip.clone()
    changed[:, 4:] = random_pixels(1, 4, 3, 8, 8, seed=1)
    before, after = tokenizer.latents(clip), tokenizer.latents(changed)
    torch.testing.assert_close(before[:, :, 0], after[:, :, 0])
    first_changed = clip.clone()
    first_changed[:, :4] = random_pixels(1, 4, 3, 8, 8, seed=1)
    assert not torch.allclose(tokenizer.latents(first_changed)[:, :, 1], before[:, :, 1])


@pytest.mark.parametrize("chunk", ["causal", "independent"])
@pytest.mark.parametrize("cuts", [(3, 5, 3), (1, 1, 9), (11,), (4, 4, 3), (2, 9)])
def test_a_streamed_clip_has_the_codes_and_pixels_of_one_call(chunk, cuts):
    tokenizer = make_tokenizer(chunk=chunk).double()
    clip = random_pixels(2, 11, 3, 8, 8).double()
    codes = tokenizer.encode(clip)
    assert torch.equal(torch.cat(list(tokenizer.encode_stream(clip.split(list(cuts), dim=1))), dim=1), codes)
    pixels = torch.cat(list(tokenizer.decode_stream(codes.split([1, 2], dim=1))), dim=1)
    torch.testing.assert_close(pixels, tokenizer.decode(codes))


def test_codes_do_not_depend_on_the_neighbours_in_a_batch(tokenizer):
    images = random_pixels(5, 3, 12, 8)
    assert torch.equal(tokenizer.encode(images), torch.cat([tokenizer.encode(image[None]) for image in images]))


def test_frames_in_small_passes_give_the_same_codes_and_pixels():
    tokenizer = make_tokenizer().double()
    clip = random_pixels(2, 6, 3, 8, 8).double()
    codes, pixels = tokenizer.encode(clip), tokenizer.decode(tokenizer.encode(clip))
    tokenizer.max_pixels_per_pass = 3 * 64
    assert torch.equal(tokenizer.encode(clip), codes)
    torch.testing.assert_close(tokenizer.decode(codes), pixels)


def test_forward_reconstructs_what_its_ids_decode_to():
    tokenizer = make_tokenizer().double()
    for pixels in (random_pixels(2, 3, 8, 8).double(), random_pixels(2, 6, 3, 8, 8).double()):
        out = tokenizer(pixels)
        assert out.reconstruction.shape == pixels.shape
        assert torch.equal(out.ids, tokenizer.encode(pixels))
        frames = pixels.shape[1] if pixels.ndim == 5 else None
        torch.testing.assert_close(out.reconstruction, tokenizer.decode(out.ids, frames=frames))


def test_gradients_reach_every_parameter():
    tokenizer = make_tokenizer().train()
    out = tokenizer(random_pixels(2, 4, 3, 8, 8))
    (out.reconstruction.square().mean() + out.losses["commitment"]).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []


def test_an_image_tokenizer_codes_a_clip_frame_by_frame():
    tokenizer = make_tokenizer(temporal_factor=1).double()
    clip = random_pixels(1, 3, 3, 8, 8).double()
    codes = tokenizer.encode(clip)
    assert codes.shape == (1, 3, 2, 2)
    assert torch.equal(codes[0], tokenizer.encode(clip[0]))


def test_saving_keeps_codes_and_fingerprint(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = VisionTokenizer.from_pretrained(tmp_path)
    clip = random_pixels(1, 5, 3, 8, 8)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(clip), tokenizer.encode(clip))
    assert torch.equal(loaded.decode(loaded.encode(clip)), tokenizer.decode(tokenizer.encode(clip)))


def test_the_fingerprint_names_weights_and_clip_rule(tokenizer):
    same, other = make_tokenizer(), make_tokenizer(seed=1)
    assert same.fingerprint == tokenizer.fingerprint
    assert other.fingerprint != tokenizer.fingerprint
    apart = make_tokenizer(chunk="independent")
    assert apart.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 4, 8, 8), "3 channels"),
        (torch.zeros(1, 3, 8, 10), "multiples of the spatial factor 4"),
        (torch.zeros(1, 0, 3, 8, 8), "at least one frame"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(3, 8, 8), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 8), "multiples"),
    ],
)
def test_bad_pixels_are_named(tokenizer, pixels, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(pixels)


def test_bytes_are_not_pixels(tokenizer):
    with pytest.raises(TypeError, match="floating point"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.full((1, 2, 2), 32), r"\[0, 32\)"),
        (torch.full((1, 2, 2), -1), r"\[0, 32\)"),
        (torch.zeros(2, 2, dtype=torch.int64), r"\(B, h, w\)"),
        (torch.zeros(1, 0, 2, 2, dtype=torch.int64), "empty"),
    ],
)
def test_bad_codes_are_named(tokenizer, codes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(codes)


def test_floats_are_not_codes(tokenizer):
    with pytest.raises(TypeError, match="integers"):
        tokenizer.decode(torch.zeros(1, 2, 2))


@pytest.mark.parametrize("frames", [0, 4, 9])
def test_frames_must_fit_the_codes(tokenizer, frames):
    with pytest.raises(ValueError, match="expected 5 to 8"):
        tokenizer.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64), frames=frames)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"spatial_factor": 3}, "multiple of 2"),
        ({"temporal_factor": 3}, "power of two"),
        ({"attn_resolutions": (2,)}, "level indices"),
        ({"embed_dim": 8}, "expected equal numbers"),
        ({"chunk": "both"}, "'causal' or 'independent'"),
        ({"codebook_size": 0}, "at least 1"),
        ({"codebook_size": "many"}, "codebook_size"),
        ({"chanel_multiplier": (1, 2)}, "chanel_multiplier"),
        ({"quantizer": "none"}, "quantizer .none. is not registered"),
        ({"quantizer_options": {"decy": 0.9}}, "decy"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_tokenizer(**fields)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="small"):
        VisionTokenizerConfig.preset("huge")


@pytest.mark.parametrize("places", [None, {"a": 1}, {"a": "../model.safetensors"}, {"a": "/model.safetensors"}])
def test_an_index_names_files_of_its_own_folder_alone(tmp_path, places):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged"):
        read_weights(tmp_path)
