"""How much memory a sequence takes while it is generated, known before it begins."""

from __future__ import annotations

import math

import torch

from emu.generation.prefill import PREFILL_CHUNK
from emu.model.attention import PROMPT_BLOCK
from emu.model.cache import SPARE
from emu.model_config import EmuConfig

GROWING = 1.5
"""How much of a cache there is while it grows: keys and values are copied one after the other."""


def drawing_memory(
    config: EmuConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    prompt: int,
    block: int,
    candidates: int,
    guided: bool,
    window: int = 1,
    refilled: bool = False,
) -> int:
    """Bytes of one block that is drawn: two numbers for each key-value head, layer and token, and the work of the widest pass.

    Args:
        config: of the transformer.
        dtype, device: of its weights.
        prompt: tokens before the block.
        block: tokens of the block.
        candidates: codes that a token may be.
        guided: whether a second row runs.
        window: tokens of a pass.
        refilled: whether other sequences take its place when it ends, for which the cache may have to grow.
    """
    assert config.num_key_value_heads is not None and config.head_dim is not None
    numbers = dtype.itemsize
    rows, fed = 2 if guided else 1, min(prompt, PREFILL_CHUNK)
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * numbers
    cache = rows * (-(-(prompt + block + window) // PROMPT_BLOCK) * PROMPT_BLOCK) * token
    if refilled:
        # It keeps what was needed once, and while it grows, keys or values are there twice.
        cache = math.ceil(cache * SPARE * GROWING)
    # The query heads of a key head are more queries of it, each with its mask; making one takes as much again.
    masks = (config.num_attention_heads // config.num_key_value_heads + 2) * prompt
    prefill = rows * fed * (8 * config.hidden_size + 4 * config.intermediate_size + masks) * numbers
    # Float32 logits, guided, sorted for top-k and top-p, and the noise beside them.
    drawing = window * candidates * (rows + 6) * 4
    return cache + max(prefill, drawing)
