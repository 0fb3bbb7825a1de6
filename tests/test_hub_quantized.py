"""Quantized and placed loading, where torchao and accelerate are installed."""

import pytest
import torch

from emu import Emu, EmuForCausalLM
from emu.hub.stand_ins import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("emu3", tmp_path_factory.mktemp("released") / "model")


def test_int8_weights_load_and_draw(folder):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is an extra")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    emu = Emu.from_pretrained(folder, device="cpu", quantization_config=config)
    assert type(emu.model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    ids = torch.randint(0, 300, (1, 9))
    found, wanted = emu.model(ids).logits, EmuForCausalLM.from_pretrained(folder)(ids).logits
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert emu.generate_images("a shiba inu", size=(32, 32))[0].codes.shape == (4, 4)


def test_a_device_map_places_the_model(folder):
    pytest.importorskip("accelerate", reason="device_map needs accelerate, an extra")
    model = EmuForCausalLM.from_pretrained(folder, device_map="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    emu = Emu.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16)
    assert emu.model.dtype == torch.bfloat16
