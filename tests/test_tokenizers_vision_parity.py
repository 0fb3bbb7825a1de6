"""The same codes and pixels as transformers' Emu3VQVAE, from its folders and from those of the Emu3 repository."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.vision.naming import BACK, weights_from, weights_to

SMALL = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [2],
    "hidden_size": 64,
    "codebook_size": 256,
}


@pytest.fixture(scope="module")
def reference() -> Emu3VQVAE:
    torch.manual_seed(0)
    model = Emu3VQVAE(Emu3VQVAEConfig(**SMALL)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():  # batch norms that have seen data
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("emu3")
    reference.save_pretrained(path)
    return path


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def their_codes(model: Emu3VQVAE, x: torch.Tensor) -> torch.Tensor:
    sizes = [x.shape[-2:]] * len(x)
    with torch.no_grad():
        codes = model.encode(x, sizes).image_tokens
    return torch.stack(codes)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 4, 3, 8, 8), (1, 8, 3, 8, 12)])
def test_codes_are_identical_and_pixels_agree(reference, folder, dtype, tolerance, shape):
    ours = VisionTokenizer.from_pretrained(folder, dtype=dtype)
    reference.to(dtype)
    x = pixels(*shape).to(dtype)
    codes = ours.encode(x)
    assert torch.equal(codes, their_codes(reference, x))
    with torch.no_grad():
        difference = ours.decode(codes) - reference.decode(codes)
    assert difference.abs().max() < tolerance
    reference.float()


def test_the_clip_rule_of_the_emu3_script_is_groups_of_four(reference, folder):
    config = VisionTokenizer.from_pretrained(folder).config
    config.chunk = "independent"
    ours = VisionTokenizer.from_pretrained(folder, config=config)
    clip = pixels(1, 8, 3, 8, 8)
    groups = their_codes(reference, clip.view(2, 4, 3, 8, 8))
    assert torch.equal(ours.encode(clip)[0], groups[:, 0])


@pytest.mark.parametrize("naming", ["emu", "transformers", "emu3"])
def test_every_naming_is_read_back(folder, tmp_path, naming):
    ours = VisionTokenizer.from_pretrained(folder)
    ours.save_pretrained(tmp_path, naming=naming)
    again = VisionTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == ours.fingerprint


def test_transformers_reads_what_we_save(reference, folder, tmp_path):
    VisionTokenizer.from_pretrained(folder).save_pretrained(tmp_path, naming="transformers")
    theirs, report = Emu3VQVAE.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    expected = reference.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs.state_dict().items())


def test_the_names_of_the_emu3_repository(folder, tmp_path):
    VisionTokenizer.from_pretrained(folder).save_pretrained(tmp_path, naming="emu3")
    weights = load_file(tmp_path / "model.safetensors")
    for name in (
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.2.attn.0.norm.weight",
        "encoder.down.2.attn.0.q.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.time_conv.0.conv.conv.weight",
        "encoder.time_res_stack.0.conv1.conv.weight",
        "decoder.mid.attn_1.norm.norm_layer.weight",
        "decoder.up.2.attn.1.norm.conv_y.weight",
        "decoder.up.1.block.0.nin_shortcut.weight",
        "decoder.norm_out.conv_b.weight",
        "quantize.embedding.weight",
        "quant_conv.conv.weight",
    ):
        assert name in weights, name
    assert weights["encoder.mid.attn_1.q.weight"].ndim == 4
    assert json.loads((tmp_path / "config.json").read_text())["ch_mult"] == [1, 1, 2]


def test_names_survive_there_and_back(folder):
    weights = VisionTokenizer.from_pretrained(folder).state_dict()
    kept = {name for name in weights if not name.startswith("quantizer.")} | {"quantizer.codebook.embed"}
    for naming in ("transformers", "emu3"):
        assert set(weights_from(weights_to(weights, naming))) == kept
    assert len(BACK) == 7


def test_a_loaded_codebook_can_be_trained_on(folder):
    ours = VisionTokenizer.from_pretrained(folder).train()
    codes = ours.quantizer.weight.clone()
    assert ours.quantizer.started
    ours(pixels(2, 3, 16, 16))
    assert (ours.quantizer.weight - codes).abs().max() < codes.abs().max()


def test_an_architecture_that_emu3_does_not_have_is_not_saved_as_emu3(tmp_path):
    small = VisionTokenizer(VisionTokenizerConfig.preset("small"))
    with pytest.raises(ValueError, match="patches"):
        small.save_pretrained(tmp_path / "out", naming="transformers")
    with pytest.raises(ValueError, match="naming is .* expected one of"):
        small.save_pretrained(tmp_path / "out", naming="tensorflow")
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_loaded_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder|no repository"):
        VisionTokenizer.from_pretrained(tmp_path / "nowhere", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        VisionTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        VisionTokenizer.from_pretrained(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        VisionTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"codebook_size": 128}))
    with pytest.raises(ValueError, match=r"\(1, 256, 4\), expected \(1, 128, 4\)"):
        VisionTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="bert"):
        VisionTokenizer.from_pretrained(tmp_path)


def test_the_vqgan_names_of_emu3_5_are_read(tmp_path):
    torch.manual_seed(0)
    small = {"base_channels": 32, "latent_channels": 8, "embed_dim": 8, "codebook_size": 64, "num_res_blocks": 1}
    config = VisionTokenizerConfig.preset("emu3.5", **small)
    ours = VisionTokenizer(config).eval()
    theirs = weights_to(ours.state_dict(), "emu3")
    for name in ("quant_conv.conv", "post_quant_conv.conv"):
        theirs[name.replace(".conv", "") + ".weight"] = theirs.pop(name + ".weight")[:, :, 0]
        theirs[name.replace(".conv", "") + ".bias"] = theirs.pop(name + ".bias")
    theirs["quantize.embedding.weight"] = ours.quantizer.embedding.weight
    assert "decoder.up.4.attn.0.norm.weight" in theirs
    save_file({name: tensor.detach().contiguous() for name, tensor in theirs.items()}, tmp_path / "model.safetensors")
    loaded = VisionTokenizer.from_pretrained(tmp_path, config=config)
    image = pixels(1, 3, 32, 48)
    assert loaded.encode(image).shape == (1, 2, 3)
    assert torch.equal(loaded.encode(image), ours.encode(image))
    assert loaded.fingerprint == ours.fingerprint


def test_the_preset_of_emu3_5_has_its_size():
    with torch.device("meta"):
        tokenizer = VisionTokenizer(VisionTokenizerConfig.preset("emu3.5"))
    total = sum(p.numel() for p in tokenizer.parameters())
    assert abs(total / 455e6 - 1) < 0.02


def test_the_preset_of_emu3_has_its_size():
    with torch.device("meta"):
        tokenizer = VisionTokenizer(VisionTokenizerConfig.preset("emu3"))
    total = sum(p.numel() for p in tokenizer.parameters()) + tokenizer.quantizer.codebook.embed.numel()
    assert total == 270_740_287
