"""Vision tokenizers of released models as ours, and back.

Our names are those of transformers' `Emu3VQVAE`, but for the codebook. The original (`modeling_emu3visionvq.py` of baaivision/Emu3) writes
attention as 1x1 convolutions with the norm inside the block; the renaming is that of transformers' own conversion script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.hub.formats import VISION_TYPES, read_config
from emu.hub.names import VISION_PREFIX
from emu.hub.weights import Checkpoint
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig

CODEBOOK, STATISTICS = "quantizer.codebook.embed", "quantizer.codebook."
THEIR_CODEBOOK = "quantize.embedding.weight"

FIELDS = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
"""Field of the original's config.json -> field of transformers'."""

DEFAULTS: dict[str, Any] = {
    "codebook_size": 32768,
    "embed_dim": 4,
    "latent_channels": 4,
    "double_latent": False,
    "in_channels": 3,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
    "base_channels": 256,
    "channel_multiplier": [1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [3],
    "num_attention_heads": 1,
}
"""What a field that transformers' configuration leaves out means."""

TO_EMU = (
    (r"\.down\.(\d+)\.", r".down_block.down.\1."),
    (r"\.up\.(\d+)\.", r".up_block.up.\1."),
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn\.\d+|attn_1)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn\.\d+|attn_1)\.proj_out\.", r".\1.out_proj."),
)
"""The original's names -> ours, in order."""

FROM_EMU = (
    (r"\.(attn\.\d+|attn_1)\.out_proj\.", r".\1.proj_out."),
    (r"\.(attn\.\d+|attn_1)\.([qkv])_proj\.", r".\1.\2."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.up_block\.up\.", ".up."),
    (r"\.down_block\.down\.", ".down."),
)
"""Our names -> the original's, in order."""

PROJECTION = re.compile(r"\.(?:attn\.\d+|attn_1)\.(?:[qkv]|proj_out)\.weight$")
"""Weights that the original keeps as 1x1 convolutions."""


def vision_format(folder: str | Path) -> str:
    """The format of a vision tokenizer's folder: "emu", "transformers" or "emu3".

    Raises:
        FileNotFoundError, ValueError: there is no config.json, or it describes something else.
    """
    kind = read_config(folder).get("model_type")
    if kind not in VISION_TYPES:
        raise ValueError(
            f"{Path(folder) / 'config.json'} has model_type {kind!r}; expected a vision tokenizer: {sorted(VISION_TYPES)}"
        )
    return VISION_TYPES[kind]


def read_vision_tokenizer(folder: str | Path, allow_pickle: str | Iterable[str] = ()) -> VisionTokenizer:
    """The vision tokenizer of a folder of its own: ours, transformers' `Emu3VQVAE`, or the original's.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: another architecture, a broken file, or tensors that do not fit the configuration.
    """
    form = vision_format(folder)
    if form == "emu":
        Checkpoint.open(folder, allow_pickle)
        return VisionTokenizer.from_pretrained(folder).eval()
    checkpoint = Checkpoint.open(folder, allow_pickle)
    return build(read_config(folder), dict(checkpoint.tensors()), form, str(folder))


def build(table: Mapping[str, Any], state: Mapping[str, Tensor], form: str, source: str) -> VisionTokenizer:
    """A tokenizer from a configuration and the tensors of its format.

    Args:
        table: config.json.
        state: name -> tensor.
        form: "transformers" or "emu3".
        source: named in messages.

    Raises:
        ValueError: parts that ours has not, or tensors that are missing, too many, or of another shape.
    """
    config = emu_config(table, form)
    tokenizer = VisionTokenizer(config).eval()
    ours = {}
    for name, tensor in state.items():
        name, tensor = to_emu(VISION_PREFIX.sub("", name), tensor, form)
        ours[name] = tensor
    expected = {name: tensor for name, tensor in tokenizer.state_dict().items() if _is_stored(name)}
    _check(ours, expected, source)
    tokenizer.to(next(tensor.dtype for tensor in ours.values() if tensor.is_floating_point()))
    tokenizer.load_state_dict(ours, strict=False)
    codebook = tokenizer.quantizer.codebook
    codebook.initted.fill_(True)
    codebook.reset_statistics()
    return tokenizer


def _is_stored(name: str) -> bool:
    return not name.startswith(STATISTICS) or name == CODEBOOK


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    for kind, names in (("lacks", expected.keys() - found.keys()), ("has too many", found.keys() - expected.keys())):
        if names:
            raise ValueError(
                f"the vision tokenizer in {source} {kind} {len(names)} tensors, e.g. {min(names)!r}; copy its files again"
            )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"the vision tokenizer in {source}: {name!r} has shape {list(found[name].shape)}, its config.json asks for "
                f"{list(tensor.shape)}; restore the config.json it was saved with"
            )


def emu_config(table: Mapping[str, Any], form: str) -> VisionTokenizerConfig:
    """Our configuration of a released vision tokenizer.

    Raises:
        ValueError: the tokenizer has parts that ours has not.
    """
    theirs = {FIELDS.get(name, name): value for name, value in table.items()} if form == "emu3" else dict(table)
    raw = {**DEFAULTS, **theirs}
    if raw["double_latent"]:
        raise ValueError(
            "config.json has double_z true; the vision tokenizer here has single latents, so it cannot be read"
        )
    multiplier = list(raw["channel_multiplier"])
    return VisionTokenizerConfig(
        spatial_factor=2 ** (len(multiplier) - 1),
        temporal_factor=raw["temporal_downsample_factor"],
        channel_multiplier=multiplier,
        **{
            name: raw[name] for name in ("codebook_size", "embed_dim", "latent_channels", "in_channels", "out_channels")
        },
        **{name: raw[name] for name in ("base_channels", "num_res_blocks", "attn_resolutions", "num_attention_heads")},
    )


def released_config(config: VisionTokenizerConfig, form: str) -> dict[str, Any]:
    """Our configuration as the config.json of a format, the inverse of `emu_config`.

    Raises:
        ValueError: the tokenizer has what the format cannot say.
    """
    fixed = {"quantizer": "vq", "spatial_norm": True, "norm_groups": 32, "patch_size": 1, "chunk": "causal"}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"the vision tokenizer has {name} {getattr(config, name)!r}, the format {form!r} knows {value!r} only; keep it in the "
                "format 'emu'"
            )
    table: dict[str, Any] = {
        **{name: getattr(config, name) for name in DEFAULTS if hasattr(config, name)},
        "double_latent": False,
        "temporal_downsample_factor": config.temporal_factor,
        "channel_multiplier": list(config.channel_multiplier),
        "attn_resolutions": list(config.attn_resolutions),
    }
    if form == "transformers":
        return {**table, "model_type": "emu3_vqgan", "hidden_size": config.widths[-1], "attention_dropout": 0.0}
    if table.pop("num_attention_heads") != 1:
        raise ValueError("the vision tokenizer has several attention heads, the original format knows one")
    back = {theirs: original for original, theirs in FIELDS.items()}
    return {**{back[name]: value for name, value in table.items()}, "model_type": "Emu3VisionVQ", "dropout": 0.0}


def to_emu(name: str, tensor: Tensor, form: str) -> tuple[str, Tensor]:
    """Our name and shape of a released tensor."""
    if name == THEIR_CODEBOOK:
        return CODEBOOK, tensor[None]
    if form == "transformers":
        return name, tensor
    if PROJECTION.search(name):
        tensor = tensor.flatten(1)
    for pattern, replacement in TO_EMU:
        name = re.sub(pattern, replacement, name)
    return name, tensor


def from_emu(tokenizer: VisionTokenizer, form: str) -> dict[str, Tensor]:
    """The tensors of our tokenizer under the names and shapes of a format, the inverse of `to_emu`."""
    state = {}
    for name, tensor in tokenizer.state_dict().items():
        if not _is_stored(name):
            continue
        if name == CODEBOOK:
            state[THEIR_CODEBOOK] = tensor[0]
            continue
        if form == "emu3":
            for pattern, replacement in FROM_EMU:
                name = re.sub(pattern, replacement, name)
            if PROJECTION.search(name):
                tensor = tensor[:, :, None, None]
        state[name] = tensor
    return state


@torch.no_grad()
def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal, name by name and bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
