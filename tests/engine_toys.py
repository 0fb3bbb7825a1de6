"""A small random transformer, a text tokenizer that writes headers, and prompts, for tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emu.model import EmuConfig, EmuForCausalLM, StaticCache
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


def step_model(device: str, dtype: torch.dtype, layers: int) -> EmuForCausalLM:
    """A model wide enough for the kernels of a GPU."""
    config = EmuConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2048, qk_norm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return EmuForCausalLM(config).to(device, dtype).eval()


def add_prompts(model: EmuForCausalLM, cache: StaticCache, lengths: Sequence[int]) -> None:
    """Let rows that begin at slot 0 join a cache that has room for them, and compute a prompt of such a length in each."""
    counts = [0] * cache.rows + list(lengths)
    cache.extend([0] * len(lengths))
    cache.expect(counts)
    ids = torch.arange(cache.rows * max(counts), device=model.device).view(cache.rows, -1)
    model.forward_block(ids % model.config.vocab_size, cache)


def filled_cache(model: EmuForCausalLM, rows: int, capacity: int, lengths: Sequence[int]) -> StaticCache:
    """A cache with room for so many rows of so many slots, some of which hold a prompt of these lengths."""
    cache = StaticCache(model.config, 0, 0, dtype=model.dtype, device=model.device)
    cache.reserve(rows, capacity)
    add_prompts(model, cache, lengths)
    return cache
