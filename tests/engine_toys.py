"""A small random transformer, a text tokenizer that writes headers, and prompts, for tests of the engine."""

from __future__ import annotations

import torch

from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(40, {"vision": 24})


class Letters:
    """A text tokenizer of single characters, enough to write headers."""

    letters = "0123456789* fps.abcdefghijklmn"

    def encode(self, text):
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.letters[index] for index in ids)


def small(vocabulary=VOCABULARY, **changes) -> EmuForCausalLM:
    torch.manual_seed(3)
    sizes = {
        "vocab_size": vocabulary.size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 100.0,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
    }
    return EmuForCausalLM(EmuConfig(**{**sizes, **changes})).eval()


def prompt(layout, text, modality="image", grid=(3, 4), meta=None):
    controls = layout.vocabulary.controls
    return torch.tensor([controls["bos"], *layout.encode_text(text), *layout.header(modality, grid, meta)])


def negative(layout, ids):
    controls = layout.vocabulary.controls
    return torch.cat([torch.tensor([controls["bos"]]), ids[int((ids == controls["boi"]).nonzero()[-1]) :]])
