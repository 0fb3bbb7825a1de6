"""A modality that no room of the library has heard of: one class, and it is laid out, packed, trained on and generated."""

import re

import pytest
import torch

from emu import Emu3Layout, EmuConfig, EmuForCausalLM, MultimodalTokenizer, TextTokenizer
from emu.data import pack
from emu.documents import CodeSegment
from emu.generation import Engine
from emu.modalities import Modality, register, unregister
from emu.training.module import EmuModule


class Melody(Modality):
    """Tuples of notes: a grid of one axis over a codebook of its own, without any tokenizer."""

    name, rank, codebook = "melody", 1, "notes"

    def accepts(self, value):
        return isinstance(value, tuple) and all(isinstance(note, int) for note in value)

    def encode(self, value, codec):
        return CodeSegment(self.name, torch.tensor(value), {"tempo": 90})

    def decode(self, segment, codec):
        return tuple(segment.codes.tolist())

    def meta_text(self, grid, meta):
        return f"{grid[0]} notes at {meta['tempo']}"

    def parse_meta(self, text):
        match = re.fullmatch(r"(\d+) notes at (\d+)", text)
        return ((int(match[1]),), {"tempo": int(match[2])}) if match else None

    def codebook_sizes(self, codec):
        return (12,)


@pytest.fixture
def tokenizer():
    register("melody", Melody())
    text = TextTokenizer.train(["a slow tune", "6 notes at 90"] * 20, vocab_size=290)
    yield MultimodalTokenizer(text, None, modalities=("melody",))
    unregister("melody")


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return EmuForCausalLM(EmuConfig(vocab_size=tokenizer.vocabulary.size, qk_norm=True, **sizes))


def test_it_is_laid_out_and_read_back(tokenizer):
    ids = tokenizer.encode(["a slow tune", (0, 4, 7, 11)])
    assert tokenizer.decode(ids) == ["a slow tune", (0, 4, 7, 11)]
    assert tokenizer.layout.constrain(ids[:-6])[0][1] in (1, 12)


def test_it_is_packed_and_trained_on(tokenizer, model):
    tunes = [tuple((start + step * k) % 12 for k in range(6)) for start in range(12) for step in (1, 5)]
    packed = pack([tokenizer.document(["a slow tune", tune]) for tune in tunes], row_length=96)
    module = EmuModule(model.config)
    module.model = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = module(packed).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_it_is_generated_under_its_grammar(tokenizer, model):
    prompts = [tokenizer.prompt([words], "melody", (6,), {"tempo": 90}) for words in ("a slow tune", "a tune")]
    engine = Engine(model, tokenizer.layout)
    codes = engine.generate_codes(prompts, grid=(6,), guidance_scale=2.0, seed=3)
    assert codes.shape == (2, 6) and 0 <= int(codes.min()) <= int(codes.max()) < 12
    for prompt, tune in zip(prompts, codes, strict=True):
        block = tokenizer.layout.block("melody", (6,)).fill(tune)
        assert tokenizer.decode(torch.cat([prompt, block]))[-1] == tuple(tune.tolist())


def test_it_stands_beside_images_in_one_layout(tokenizer):
    from emu import Vocabulary

    both = Emu3Layout(Vocabulary.build(290, {"vision": 64, "notes": 12}), tokenizer.text)
    segments = [
        CodeSegment("image", torch.zeros(2, 2, dtype=torch.long)),
        CodeSegment("melody", torch.arange(3), {"tempo": 90}),
    ]
    assert [segment.modality for segment in both.parse(both.build(segments).ids)] == ["image", "melody"]


def test_two_classes_cannot_share_a_name(tokenizer):
    with pytest.raises(ValueError, match=r"'melody' is registered already \(Melody"):
        register("melody", type("Other", (Melody,), {})())
