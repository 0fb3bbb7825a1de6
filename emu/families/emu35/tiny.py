"""A small random vision tokenizer of Emu3.5; its language model is Emu3's tiny one with norms of queries and keys."""

from __future__ import annotations

from pathlib import Path

import torch

from emu.families.emu35.vision import ibq_config, write_ibq
from emu_tokenizers import VisionTokenizer


def write_vision(folder: str | Path, *, seed: int = 1, num_codes: int = 64) -> Path:
    """A vision tokenizer in the files of baaivision/Emu3.5, in safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    inner = {"ch": 32, "out_ch": 3, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [4]}
    inner |= {"in_channels": 3, "resolution": 64, "z_channels": 8, "double_z": False}
    table = {"ddconfig": inner, "n_embed": num_codes, "embed_dim": 8, "beta": 0.25}
    write_ibq(folder, VisionTokenizer(ibq_config(table)).eval())
    return folder
