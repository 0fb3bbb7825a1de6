"""A family of checkpoints from this file alone: its own names of tensors, fields of its configuration, and files."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emu import Emu, EmuConfig, EmuForCausalLM, TextTokenizer, VisionTokenizer, VisionTokenizerConfig, Vocabulary
from emu.cli.main import main
from emu.families import Family, register, unregister
from emu.families.detection import find_family
from emu.hub.tiny_models import write
from emu_tokenizers.files import read_json, write_json
from tests.tensors import same_tensors

FIELDS = {
    **{"ids": "vocab_size", "width": "hidden_size", "inner": "intermediate_size", "depth": "num_hidden_layers"},
    **{"heads": "num_attention_heads", "table": "vocabulary"},
}
PARTS = {
    "self_attn.q_proj": "ask",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "answer",
}


class Songbird(Family):
    """`bird/block_0/ask` for `model.layers.0.self_attn.q_proj.weight`, and words and pictures in folders of their own."""

    name, title, layout, modalities = "songbird", "a made-up family", "emu3", ("image",)
    model_types, vision_types = ("songbird",), (VisionTokenizerConfig.model_type,)
    renames = {
        **{rf"^bird/block_(\d+)/{theirs}$": rf"model.layers.\1.{ours}.weight" for ours, theirs in PARTS.items()},
        r"^bird/block_(\d+)/(.*)$": r"model.layers.\1.\2.weight",
        r"^bird/top$": "lm_head.weight",
        r"^bird/(.*)$": r"model.\1.weight",
    }

    def config_from(self, config, vocabulary=None):
        return EmuConfig(**{ours: config[theirs] for theirs, ours in FIELDS.items()})

    def from_ours(self, name, alone=False):
        if name == "lm_head.weight":
            return "bird/top"
        name = re.sub(r"^model\.layers\.(\d+)\.", r"bird/block_\1/", name.removesuffix(".weight"))
        for ours, theirs in PARTS.items():
            name = name.replace(ours, theirs)
        return re.sub(r"^model\.", "bird/", name)

    def vocabulary(self, folder, config):
        return Vocabulary.from_dict(config["table"])

    def text(self, folder, vocabulary, split):
        return TextTokenizer.from_pretrained(folder / "words")

    def defaults(self, name, config):
        return {"size": [8, 8], "guidance_scale": 2.0}

    def write(self, folder, config, tokenizer):
        table = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
        write_json(folder / "config.json", {"model_type": self.name, **table, "table": tokenizer.vocabulary.to_dict()})
        tokenizer.text.save_pretrained(folder / "words")
        tokenizer.vision.save_pretrained(folder / "vision_tokenizer")

    def write_tiny(self, folder, weights, *, alone=False, **model):
        text = TextTokenizer.train(["a tit on a twig", "2*2"] * 9, vocab_size=280)
        vocabulary = Vocabulary.build(text.size, {"vision": 16})
        sizes = {"ids": vocabulary.size, "width": 32, "inner": 48, "depth": 2, "heads": 4}
        table = {"model_type": self.name, **sizes, "table": vocabulary.to_dict()}
        torch.manual_seed(0)
        state = weights(self.config_from(table))
        folder.mkdir(parents=True)
        write_json(folder / "config.json", table)
        save_file({self.from_ours(name): tensor for name, tensor in state.items()}, folder / "model.safetensors")
        text.save_pretrained(folder / "words")
        vision = VisionTokenizerConfig.preset("small", base_channels=8, codebook_size=16)
        VisionTokenizer(vision).save_pretrained(folder / "vision_tokenizer")


def weights_of(folder: Path):
    return load_file(folder / "model.safetensors")


def test_a_family_from_one_file_is_found_loaded_and_converted(tmp_path):
    songbird = register("songbird", Songbird())
    try:
        theirs = write("songbird", tmp_path / "theirs")
        assert find_family(theirs) is songbird and "bird/block_1/ask" in weights_of(theirs)
        loaded = EmuForCausalLM.from_pretrained(theirs).state_dict()
        assert all(torch.equal(tensor, loaded[songbird.to_ours(name)]) for name, tensor in weights_of(theirs).items())

        for source, target, family in (("theirs", "ours", "emu"), ("ours", "again", "songbird")):
            assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--to", family]) == 0
        assert find_family(tmp_path / "ours").name == "emu"
        assert same_tensors(weights_of(tmp_path / "ours"), loaded)
        assert same_tensors(weights_of(tmp_path / "again"), weights_of(theirs))
        assert read_json(tmp_path / "again" / "config.json") == read_json(theirs / "config.json")

        emus = [Emu.from_pretrained(tmp_path / name, device="cpu") for name in ("theirs", "ours", "again")]
        drawn = [emu.generate_images("a tit", seed=3)[0] for emu in emus]
        assert drawn[0].image.size == (8, 8) and emus[0].defaults.guidance_scale == 2.0
        assert all(torch.equal(result.codes, drawn[0].codes) for result in drawn)
    finally:
        unregister("songbird")
    with pytest.raises(ValueError, match="model_type 'songbird'"):
        EmuForCausalLM.from_pretrained(theirs)
