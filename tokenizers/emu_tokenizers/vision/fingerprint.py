"""The name of a tokenizer's codes: a hash of what decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from emu_tokenizers.vision.config import VisionTokenizerConfig

FIELDS = (
    *("spatial_factor", "temporal_factor", "codebook_size", "embed_dim", "latent_channels", "in_channels"),
    *("out_channels", "base_channels", "channel_multiplier", "num_res_blocks", "attn_resolutions"),
    *("num_attention_heads", "norm_groups", "spatial_norm", "quantizer"),
    *("quantizer_options", "chunk"),
)
"""Fields of the configuration that decide codes; a field of a later version may not join them without changing all fingerprints."""


def fingerprint(config: VisionTokenizerConfig, weights: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits over architecture, clip rule, and weights in the order of their names, wherever they lie.

    Args:
        config: of the tokenizer.
        weights: of its state dict, without the statistics that training alone reads.
    """
    digest = hashlib.sha256()
    fields = {name: getattr(config, name) for name in FIELDS}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        tensor = tensor.detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
