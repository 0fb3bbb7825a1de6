"""Weights and logits that are not numbers are told, and never drawn from."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from emu import Emu, EmuForCausalLM, VisionTokenizer
from emu.generation import Engine
from emu.generation import cohort as cohort_module
from emu_tokenizers.weight_checks import check_finite

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def broken(tiny_emu):
    """An `Emu` whose head turns the logits of one code to NaN, from its second layer on."""
    model = copy.deepcopy(tiny_emu.model)
    first = tiny_emu.tokenizer.layout.code_ranges("vision")[0][0]
    model.lm_head.weight.data[first + 3, 5] = float("nan")
    model.lm_head.weight.data[0, 5] = float("inf")  # and those of a token of text to infinity
    return Emu(model, tiny_emu.tokenizer, tiny_emu.defaults)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_is_drawn_from_logits_that_are_not_numbers(broken, temperature, deterministic):
    options = {"temperature": temperature, "deterministic": deterministic}
    for window in (1, 4):
        with pytest.raises(FloatingPointError, match=r"logits of token \d+ of sequence 0, 1 .*NaN"):
            broken.generate_images(["a ball", "a red circle"], window=window, **options)
    with pytest.raises(FloatingPointError, match="infinity"):
        broken.generate_videos("a ball", **options)
    with pytest.raises(FloatingPointError, match="verify=True"):
        broken.generate_text([["a ball"]], **options)
    with pytest.raises(FloatingPointError):
        list(broken.generate("a ball", text_temperature=temperature, **options))


def test_a_single_broken_sequence_of_a_batch_is_named(tiny_emu):
    model = copy.deepcopy(tiny_emu.model)
    layout, prompts = tiny_emu.tokenizer.layout, ["a ball", "a red circle"]
    rows = [tiny_emu.tokenizer.prompt([words], "image", (2, 2)) for words in prompts]
    (only,) = sorted(set(rows[1].tolist()) - set(rows[0].tolist()))[:1]
    model.model.embed_tokens.weight.data[only] = float("nan")
    with pytest.raises(FloatingPointError, match="of sequence 1 of the batch"):
        Engine(model, layout).generate_codes(rows, grid=(2, 2))
    assert Engine(model, layout).generate_codes(rows[:1], grid=(2, 2)).shape == (1, 2, 2)


def test_where_looking_would_wait_for_the_device_it_is_done_before_anything_is_given_away(broken, monkeypatch):
    rows = []
    monkeypatch.setattr(cohort_module, "knows_at_once", lambda device: False)
    prompt = broken.tokenizer.prompt(["a ball"], "image", (2, 2))
    engine = broken._engine(None)
    with pytest.raises(FloatingPointError, match=f"token {len(prompt)}"):
        engine.generate_codes([prompt], grid=(2, 2), on_row=lambda *row: rows.append(row))
    assert rows == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_numbers(dtype):
    large = torch.full((2, 3, 50000), torch.finfo(dtype).max / 8, dtype=dtype)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(large)
    check_finite(module, "here")
    for bad in BAD:
        cohort = cohort_module.SingleSteps(torch.device("cpu"))
        cohort.broken = torch.full((3,), -1)
        cohort.watched(large[..., :4] / 8, [0, 1, 2], [5, 6, 7])
        assert not cohort.is_suspect
        cohort.watched(torch.tensor([[[0.0, bad], [0.0, 1.0]]], dtype=dtype), [2, 0], [8, 9])
        assert cohort.is_suspect and cohort.broken.tolist() == [-1, -1, 8]


@pytest.fixture
def saved(tiny_emu, tmp_path):
    tiny_emu.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "emu.json").unlink()
    return tmp_path / "tiny"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("model.safetensors", Emu.from_pretrained),
        ("model.safetensors", EmuForCausalLM.from_pretrained),
        ("vision_tokenizer/model.safetensors", Emu.from_pretrained),
        (
            "vision_tokenizer/model.safetensors",
            lambda folder: VisionTokenizer.from_pretrained(folder / "vision_tokenizer"),
        ),
    ],
)
def test_weights_that_are_not_numbers_are_told_when_they_are_read(saved, file, reader, bad):
    weights = load_file(saved / file)
    name = sorted(name for name, weight in weights.items() if weight.is_floating_point() and weight.ndim > 1)[-1]
    weights[name].view(-1)[-1] = bad
    save_file(weights, saved / file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tiny.*NaN or infinity, in '"):
        reader(saved)


def test_a_model_that_was_saved_whole_is_read(saved):
    assert Emu.from_pretrained(saved)
