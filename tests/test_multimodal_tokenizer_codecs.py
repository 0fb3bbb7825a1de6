"""A modality may bring a tokenizer of its own: held by name, saved in a folder of its own, read only by a class that is known here."""

import json
import re

import pytest
import torch

from emu import Emu, EmuConfig, EmuForCausalLM, MultimodalTokenizer, TextTokenizer
from emu.documents import CodeSegment
from emu.modalities import MODALITIES, Modality
from emu_tokenizers.files import read_json, write_json


class Steps:
    """Numbers as multiples of a step."""

    def __init__(self, step):
        self.step = step

    @property
    def fingerprint(self):
        return f"steps of {self.step}"

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "steps.json", {"step": self.step})

    @classmethod
    def from_pretrained(cls, folder):
        return cls(read_json(folder / "steps.json")["step"])


class Curve(Modality):
    """Lists of numbers as a grid of one axis."""

    name, rank, codebook, codec, codec_class = "curve", 1, "heights", "heights", Steps

    def accepts(self, value):
        return isinstance(value, tuple)

    def encode(self, value, codec):
        return CodeSegment(self.name, torch.tensor([round(number / codec.step) for number in value]))

    def decode(self, segment, codec):
        return tuple(code * codec.step for code in segment.codes.tolist())

    def meta_text(self, grid, meta):
        return f"curve {grid[0]}"

    def parse_meta(self, text):
        match = re.fullmatch(r"curve (\d+)", text)
        return ((int(match[1]),), {}) if match else None

    def codebook_sizes(self, codec):
        return (16,)


@pytest.fixture
def tokenizer():
    MODALITIES.register("curve", Curve())
    text = TextTokenizer.train(["a slow curve", "curve 6"] * 20, vocab_size=285)
    yield MultimodalTokenizer(text, codecs={"heights": Steps(0.5)}, modalities=("curve",))
    MODALITIES.unregister("curve")


def test_values_go_through_the_codec_and_back(tokenizer):
    ids = tokenizer.encode(["a slow curve", (0.5, 3.0, 1.5)])
    assert tokenizer.decode(ids) == ["a slow curve", (0.5, 3.0, 1.5)]
    assert tokenizer.fingerprints["heights"] == "steps of 0.5" and tokenizer.vision is None


def test_a_codec_is_saved_beside_the_text_tokenizer_and_read_back(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "heights_tokenizer" / "steps.json").is_file()
    table = json.loads((tmp_path / "multimodal_tokenizer.json").read_text())
    assert table["codecs"] == {"heights": f"{__name__}.Steps"}
    again = MultimodalTokenizer.from_pretrained(tmp_path)
    assert again.fingerprints == tokenizer.fingerprints and again.codecs["heights"].step == 0.5


def test_a_whole_model_keeps_the_codec(tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    emu = Emu(EmuForCausalLM(EmuConfig(vocab_size=tokenizer.vocabulary.size, **sizes)), tokenizer)
    emu.save_pretrained(tmp_path / "model")
    again = Emu.from_pretrained(tmp_path / "model", device="cpu", verify=True)
    assert again.fingerprint == emu.fingerprint
    (tmp_path / "model" / "heights_tokenizer" / "old").write_text("of an earlier model")
    emu.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "heights_tokenizer" / "old").exists()


def test_another_codec_in_the_folder_is_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    Steps(0.25).save_pretrained(tmp_path / "heights_tokenizer")
    with pytest.raises(ValueError, match=r"heights of .* has fingerprint steps of 0\.25.*saved with steps of 0\.5"):
        MultimodalTokenizer.from_pretrained(tmp_path)
    (tmp_path / "heights_tokenizer" / "steps.json").unlink()
    (tmp_path / "heights_tokenizer").rmdir()
    with pytest.raises(FileNotFoundError, match="lacks heights_tokenizer/"):
        MultimodalTokenizer.from_pretrained(tmp_path)


def test_a_class_that_only_the_folder_names_is_not_imported(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "multimodal_tokenizer.json"
    write_json(file, json.loads(file.read_text()) | {"codecs": {"heights": "stranger.Steps"}})
    assert MultimodalTokenizer.from_pretrained(tmp_path).codecs["heights"].step == 0.5
    monkeypatch.setattr(Curve, "codec_class", None)
    with pytest.raises(ValueError, match=r"'heights' \(stranger\.Steps\).*codecs=\{'heights': \.\.\.\}"):
        MultimodalTokenizer.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert MultimodalTokenizer.from_pretrained(tmp_path, codecs={"heights": Steps}).codecs["heights"].step == 0.5


def test_a_codec_is_given_once(tokenizer):
    with pytest.raises(ValueError, match="given twice"):
        MultimodalTokenizer(tokenizer.text, Steps(1.0), codecs={"vision": Steps(2.0)}, modalities=("curve",))
    vision = Steps(1.0)
    given = {"vision": vision, "heights": Steps(0.5)}
    assert MultimodalTokenizer(tokenizer.text, vision, codecs=given, modalities=("curve",)).vision is vision


def test_vision_is_one_of_the_codecs(tiny_emu):
    text, vision = tiny_emu.tokenizer.text, tiny_emu.tokenizer.vision
    short, long = MultimodalTokenizer(text, vision), MultimodalTokenizer(text, codecs={"vision": vision})
    assert short.vision is long.vision is vision and short.fingerprints == long.fingerprints


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "vocabulary": 3}'])
def test_a_table_that_cannot_be_read_names_its_file(content, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "multimodal_tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"multimodal_tokenizer\.json"):
        MultimodalTokenizer.from_pretrained(tmp_path)


def test_plain_templates_leave_no_file_not_even_that_of_an_earlier_tokenizer(tokenizer, tmp_path):
    from emu.templates import PLAIN, Templates

    tokenizer.with_templates(Templates(answer="Look: {items} ->")).save_pretrained(tmp_path)
    assert MultimodalTokenizer.from_pretrained(tmp_path).templates.answer == "Look: {items} ->"
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "templates.json").exists()
    assert MultimodalTokenizer.from_pretrained(tmp_path).templates == PLAIN
