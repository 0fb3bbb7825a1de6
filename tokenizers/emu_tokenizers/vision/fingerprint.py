"""The name of a tokenizer's codes: a hash of what decides them."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from emu_tokenizers.vision.tokenizer import VisionTokenizer

FIELDS = (
    *("spatial_factor", "temporal_factor", "codebook_size", "embed_dim", "latent_channels", "in_channels"),
    *("out_channels", "base_channels", "channel_multiplier", "num_res_blocks", "attn_resolutions"),
    *("num_attention_heads", "norm_groups", "spatial_norm", "quantizer"),
    *("quantizer_options", "chunk"),
)
STATISTICS = ("num_batches_tracked", "cluster_size", "embed_avg", "initted", "num_updates")


def fingerprint(tokenizer: "VisionTokenizer") -> str:
    """Sixteen hexadecimal digits over the weights (in name order), the architecture and the clip rule.

    Moving statistics that only training reads are left out, and so is the device.
    """
    digest = hashlib.sha256()
    config = {name: getattr(tokenizer.config, name) for name in FIELDS}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        if name.rsplit(".", 1)[-1] in STATISTICS:
            continue
        tensor = tensor.detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
