"""Quantized and placed loading: with torchao and accelerate where they are installed, with a stand-in of torchao's interface elsewhere."""

import importlib.util
import sys
import types

import pytest
import torch

from emu import Emu, EmuForCausalLM
from emu.checkpoints import quantization
from emu.hub.tiny_models import write

ERRORS = {"int8": 0.1, "int4": 0.7, "fp8": 0.3}
"""Relative error of the logits of a random model that its quantized weights may have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("emu3", tmp_path_factory.mktemp("released") / "model", hidden_size=64, intermediate_size=96)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_quantized_weights_load_draw_and_are_saved(kind, dtype, folder, tmp_path):
    pytest.importorskip("torchao", reason="torchao is an extra")
    emu = Emu.from_pretrained(folder, device="cpu", dtype=dtype, quantization_config=kind)
    assert type(emu.model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    ids = torch.randint(0, 300, (1, 9))
    found, wanted = emu.model(ids).logits.float(), EmuForCausalLM.from_pretrained(folder)(ids).logits
    assert 0 < (found - wanted).norm() / wanted.norm() < ERRORS[kind]
    assert emu.generate_images("a shiba inu", size=(32, 32))[0].codes.shape == (4, 4)
    emu.save_pretrained(tmp_path / "saved")
    again = Emu.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.model.dtype == dtype and torch.equal(again.model(ids).logits.float(), found)
    with pytest.raises(ValueError, match="deterministic=True works on plain weights"):
        again.generate_images("a shiba inu", size=(32, 32), deterministic=True)


@pytest.mark.parametrize("form", ["emu3", "emu3.5", "transformers"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_every_word_can_be_tried_on_the_stand_ins(kind, form, tmp_path):
    pytest.importorskip("torchao", reason="torchao is an extra")
    model = EmuForCausalLM.from_pretrained(write(form, tmp_path / "model"), quantization_config=kind)
    assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter


def test_a_configuration_of_transformers_is_taken_as_it_is(folder):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is an extra")
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
    model = EmuForCausalLM.from_pretrained(folder, quantization_config=config)
    assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter


def test_a_quantization_that_the_device_cannot_run_is_told(folder):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is an extra")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Float8DynamicActivationFloat8WeightConfig())
    with pytest.raises(ValueError, match="torchao could not quantize the weights of .* on cpu"):
        EmuForCausalLM.from_pretrained(folder, quantization_config=config)


def test_an_unknown_word_is_refused(folder):
    with pytest.raises(ValueError, match=r"'int3'; expected one of \['int8', 'int4', 'fp8'\]"):
        Emu.from_pretrained(folder, device="cpu", quantization_config="int3")


def test_torchao_that_is_not_installed_is_named(folder, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; run pip install 'emu-tokens\[quantized\]'"):
        Emu.from_pretrained(folder, device="cpu", quantization_config="int8")
    with pytest.raises(ValueError, match="the folder's quantized weights need torchao"):
        quantization.is_quantized({"quantization_config": {"quant_method": "torchao"}})


@pytest.fixture
def torchao(monkeypatch):
    """A stand-in of torchao: which of its configurations are asked for."""
    names = ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "Int4WeightOnlyConfig", "IntxWeightOnlyConfig")
    module = types.ModuleType("torchao.quantization")
    for name in names:
        setattr(module, name, lambda name=name, **options: (name, options))
    module.PerGroup = lambda size: ("PerGroup", size)
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(quantization=module))
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    monkeypatch.setattr(quantization, "find_spec", lambda name: module)
    monkeypatch.setattr("transformers.TorchAoConfig", lambda config: config)


@pytest.mark.parametrize(
    ("word", "device", "expected"),
    [
        ("int8", "cuda", ("Int8WeightOnlyConfig", {})),
        ("fp8", "cuda", ("Float8WeightOnlyConfig", {})),
        ("int4", "cuda", ("Int4WeightOnlyConfig", {"group_size": 128, "int4_packing_format": "tile_packed_to_4d"})),
        ("int4", "cpu", ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4, "granularity": ("PerGroup", 32)})),
    ],
)
def test_a_word_stands_for_what_the_device_can_run(word, device, expected, torchao):
    assert quantization.quantization_config(word, device) == expected


@pytest.mark.parametrize(("widths", "shared"), [((48, 96), 16), ((64, 96), 32), ((4096, 14336), 32), ((20, 36), 4)])
def test_as_many_numbers_share_a_scale_as_divide_every_width(widths, shared, torchao):
    assert quantization.quantization_config("int4", "cpu", widths)[1]["granularity"] == ("PerGroup", shared)


def test_int4_on_a_gpu_needs_widths_that_its_kernel_takes(torchao):
    assert quantization.quantization_config("int4", "cuda", (192, 4096))[1]["group_size"] == 64
    with pytest.raises(ValueError, match=r"multiples of 32; those of the model are \[48, 96\]. Choose 'int8'"):
        quantization.quantization_config("int4", "cuda", (48, 96, 48))


@pytest.mark.parametrize(
    ("device_map", "device"),
    [(None, "cpu"), ("cpu", "cpu"), ("cuda:1", "cuda"), ({"": 0}, "cuda"), ({"model": "cpu", "lm_head": "cpu"}, "cpu")],
)
def test_a_device_map_tells_where_weights_will_be(device_map, device):
    assert quantization.target_of(device_map) == device


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="device_map needs accelerate, an extra")
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_device_map_places_the_model(device_map, folder):
    if device_map == "auto" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = EmuForCausalLM.from_pretrained(folder, device_map=device_map)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    emu = Emu.from_pretrained(folder, device_map=device_map, dtype=torch.bfloat16)
    assert emu.model.dtype == torch.bfloat16
    assert emu.generate_images("a shiba inu", size=(16, 16))[0].codes.shape == (2, 2)
