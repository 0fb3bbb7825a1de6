"""The arithmetic of a training step, for MFU (model FLOP utilisation, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from emu.model import EmuConfig


def step_flops(config: EmuConfig, tokens: float, predicted: float, pairs: float, adapters: int | None = None) -> float:
    """Operations, multiplications and additions each counted, that training on tokens needs at least.

        3 * (2 * tokens * layers * matrices + 2 * predicted * hidden * vocabulary + 4 * pairs * layers * heads * head_dim)

    Three is one forward pass and twice as much backward; `matrices` is the number of weights in the matrices of a block. Left out is what
    a model need not do: padding, what documents of one row would see of each other, the head where nothing is predicted, and activations
    that are computed again. Norms, rotations and the softmax are too few to count.

    Args:
        config: of the transformer.
        tokens: without padding.
        predicted: those of them that are predicted.
        pairs: of a query and a key that it sees: n * (n + 1) / 2 in a document of n tokens.
        adapters: weights that learn, where all others are frozen: matrices and head then need no gradient of their own, two of the three
            passes, and adapters all three. None where all weights learn.
    """
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    width, head_dim = config.hidden_size, config.head_dim
    assert keys is not None and head_dim is not None
    matrices = width * head_dim * (2 * heads + 2 * keys) + 3 * width * config.intermediate_size
    body = 2 * tokens * matrices * config.num_hidden_layers
    attention = 4 * pairs * config.num_hidden_layers * heads * head_dim
    head = 2 * predicted * width * config.vocab_size
    if adapters is not None:
        return 2 * (body + head) + 3 * (attention + 2 * tokens * adapters)
    return 3 * (body + attention + head)


def utilisation(flops: float, seconds: float, devices: int, peak: float) -> float:
    """MFU: operations that were needed, over those that the devices could have done: flops / (seconds * devices * peak)."""
    return flops / (max(seconds, 1e-9) * devices * peak)
