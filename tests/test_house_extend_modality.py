"""Adding a modality with a codec of its own from a single file: it is coded, stored, trained on, generated and decoded."""

import re

import numpy as np
import pytest
import torch
import yaml

from emu import Emu, MultimodalTokenizer, TextTokenizer
from emu.data.shards import TokenizedDocument, TokenShards, write_manifest, write_shard
from emu.documents import CodeSegment
from emu.modalities import Modality, register, unregister
from emu_tokenizers.files import read_json, write_json
from tests.training_toys import run, write_recipe

LEVELS, HOP = 12, 4


class Wave:
    """A sound: samples in [-1, 1]."""

    def __init__(self, samples):
        self.samples = np.asarray(samples, np.float32)


class LevelCodec:
    """One code for HOP samples, their mean on evenly spaced levels up to a loudness."""

    def __init__(self, loudness):
        self.loudness = loudness

    @property
    def fingerprint(self):
        return f"levels up to {self.loudness}"

    def encode(self, samples):
        means = samples.reshape(-1, HOP).mean(1) / self.loudness
        return torch.from_numpy(np.clip(np.rint((means + 1) / 2 * (LEVELS - 1)), 0, LEVELS - 1).astype(np.int64))

    def decode(self, codes):
        return ((codes.numpy() / (LEVELS - 1) * 2 - 1) * self.loudness).repeat(HOP)

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "levels.json", {"loudness": self.loudness})

    @classmethod
    def from_pretrained(cls, folder):
        return cls(**read_json(folder / "levels.json"))


class Sound(Modality):
    """`Wave` in, `Wave` out; the header says how many codes there are and how many samples they stand for."""

    name, rank, codebook, codec, codec_class = "sound", 1, "levels", "audio", LevelCodec

    def accepts(self, value):
        return isinstance(value, Wave)

    def encode(self, value, codec):
        padded = np.pad(value.samples, (0, -len(value.samples) % HOP), mode="edge")
        return CodeSegment(self.name, codec.encode(padded), {"samples": len(value.samples)})

    def decode(self, segment, codec):
        return Wave(codec.decode(segment.codes)[: segment.meta["samples"]])

    def meta_text(self, grid, meta):
        return f"{grid[0]} levels {meta['samples']} samples"

    def parse_meta(self, text):
        match = re.fullmatch(r"([1-9]\d*) levels ([1-9]\d*) samples", text)
        return ((int(match[1]),), {"samples": int(match[2])}) if match else None

    def codebook_sizes(self, codec):
        return (LEVELS,)


@pytest.fixture
def tokenizer():
    register("sound", Sound())
    text = TextTokenizer.train(["a rising tone", "6 levels 22 samples"] * 20, vocab_size=290)
    yield MultimodalTokenizer(text, codecs={"audio": LevelCodec(0.5)}, modalities=["sound"])
    unregister("sound")


def rising(start):
    return Wave(np.linspace(start, 0.5, 22))


def write_shards(folder, tokenizer):
    documents = [["a rising tone", rising(-0.1 * number), rising(0.1)] for number in range(5)]
    made = [TokenizedDocument(tokenizer.document(items)) for items in documents]
    write_shard(folder, 0, made, tokenizer.vocabulary, {})
    write_manifest(folder, 1, tokenizer.vocabulary, tokenizer.fingerprints)


def test_a_modality_with_a_codec_is_added_from_one_file(tokenizer, tmp_path):
    # Coded and decoded.
    words, wave = tokenizer.decode(tokenizer.encode(["a rising tone", rising(-0.5)]))
    assert words == "a rising tone" and wave.samples.shape == (22,)
    assert np.abs(wave.samples - rising(-0.5).samples).max() < 0.15

    # Stored, with the place of each sound.
    write_shards(tmp_path / "shards", tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    stored = TokenShards(tmp_path / "shards").document(3, key=0)
    assert torch.equal(stored.ids, tokenizer.encode(["a rising tone", rising(-0.3), rising(0.1)]))
    span = tokenizer.layout.spans(stored.ids)[1]
    assert (span.modality, span.grid, dict(span.meta)) == ("sound", (6,), {"samples": 22})

    # Trained on for one step, by a recipe.
    recipe = write_recipe(tmp_path)
    config = yaml.safe_load(recipe.read_text())
    options = {"sources": {"sounds": str(tmp_path / "shards")}, "documents_per_step": {"sounds": 2}, "row_length": 64}
    options["tokenizer"] = str(tmp_path / "tokenizer")
    config["data"] = {"class_path": "emu.data.sharded.ShardData", "init_args": options}
    config["model"]["config"] |= {"max_position_embeddings": 64, "initializer_range": 0.3}
    config["trainer"]["max_steps"] = 1
    recipe.write_text(yaml.safe_dump(config))
    run(recipe)
    emu = Emu.from_pretrained(tmp_path / "run" / "model")
    assert emu.tokenizer.codecs["audio"].loudness == 0.5 and "text_to_sound" in emu.trained.tasks

    # Generated under its grammar.
    layout, engine = emu.tokenizer.layout, emu._engine(None)
    prompts = [emu.tokenizer.prompt([words], "sound", (6,), {"samples": 22}) for words in ("a rising tone", "a tone")]
    codes = engine.generate_codes(prompts, grid=(6,), guidance_scale=2.0, seed=3)
    assert codes.shape == (2, 6) and 0 <= int(codes.min()) <= int(codes.max()) < LEVELS
    for prompt, one in zip(prompts, codes, strict=True):
        ids = torch.cat([prompt, layout.block("sound", (6,)).fill(one)])
        assert layout.constrain(ids[:-1]) == ((int(ids[-1]), 1),)
        assert emu.tokenizer.decode(ids)[-1].samples.shape == (22,)
    emu.model.lm_head.weight.data[layout.openings[0]] *= 20  # so that sounds begin often
    written = [
        item for seed in range(6) for item in emu.generate(["a tone", rising(0.0)], max_new_tokens=20, seed=seed)
    ]
    assert all(isinstance(item, str | Wave) for item in written) and any(isinstance(item, Wave) for item in written)
