"""`emu verify`: folders of every family agree with transformers, and a weight that was changed is found."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from emu.cli.main import main
from emu.hub import verification
from emu.hub.tiny_models import write


def said(capsys, *words):
    """(exit code, finding -> "same", "DIFFERENT" or "not compared") of the command."""
    code = main(["verify", *map(str, words)])
    out = capsys.readouterr().out
    rows = {line[:20].strip(): line[22:].partition(":")[0] for line in out.splitlines()}
    assert "torch" in out and "transformers" in out
    return code, {name: word for name, word in rows.items() if name not in ("model", "versions", "computed")}


@pytest.mark.parametrize("form", ["transformers", pytest.param("emu3", marks=pytest.mark.slow)])
def test_a_folder_agrees_with_transformers(form, tmp_path, capsys):
    code, found = said(capsys, write(form, tmp_path / "model"))
    assert code == 0 and set(found.values()) == {"same"} and len(found) == 5


@pytest.mark.slow
def test_what_transformers_has_not_is_not_compared(tmp_path, capsys, tiny_emu):
    tiny_emu.save_pretrained(tmp_path / "own")
    for model in (write("emu3.5", tmp_path / "newer"), "digits", tmp_path / "own"):
        code, found = said(capsys, model)
        assert code == 0 and found["logits"] == "same" and found["greedy codes"] == "not compared"
    sizes = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "text")
    code, found = said(capsys, tmp_path / "text")
    assert code == 0 and found["logits"] == "same" and found["pixels"] == "not compared"


def test_what_differs_is_named(tmp_path, capsys, monkeypatch):
    folder = write("transformers", tmp_path / "model")
    changed = shutil.copytree(folder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.down_proj.weight"))
    weights[name] = weights[name] + 0.01
    decoder = next(name for name in weights if "decoder.conv_out.weight" in name)
    weights[decoder] = weights[decoder] * 1.1
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    theirs = verification._their_answers
    monkeypatch.setattr(verification, "_their_answers", lambda place, *rest: theirs(changed, *rest))
    code, found = said(capsys, folder)
    assert code == 1 and found["logits"] == found["pixels"] == "DIFFERENT" and found["ids"] == "same"


def test_a_request_that_is_wrong_says_so(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["verify", "digits", "--device", "abacus"]) == 2
    assert "--device is 'abacus'" in capsys.readouterr().err


def test_the_picture_is_the_same_everywhere():
    picture = verification.probe_picture(32)
    assert picture.shape == (3, 32, 32) and float(picture.abs().max()) <= 1
    assert torch.equal(picture, verification.probe_picture(32)) and picture.std() > 0.3
