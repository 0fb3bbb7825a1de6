"""Weights of Emu3's vision tokenizer under other names: transformers' Emu3VQVAE and the Emu3 repository.

Our modules carry transformers' names, except for the codebook. The repository's names differ by the rules of transformers'
own conversion script (models/emu3/convert_emu3_weights_to_hf.py), which are inverted here for saving.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from emu_tokenizers.vision.config import VisionTokenizerConfig

CODEBOOK = "quantizer.codebook.embed"
THEIR_CODEBOOKS = ("quantize.embedding.weight",)

RENAMES = [  # the Emu3 repository's name, transformers' name
    (r"(?<!_block)\.down\.(\d+)\.", r".down_block.down.\1."),
    (r"(?<!_block)\.up\.(\d+)\.", r".up_block.up.\1."),
    (r"\.mid\.attn_1\.norm\.", r".middle_block.attn_norm."),
    (r"\.mid\.", r".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn(?:\.\d+|_1))\.(q|k|v)\.", r"\1.\2_proj."),
    (r"(\.attn(?:\.\d+|_1))\.proj_out\.", r"\1.out_proj."),
]
BACK = [
    (r"\.down_block\.down\.(\d+)\.", r".down.\1."),
    (r"\.up_block\.up\.(\d+)\.", r".up.\1."),
    (r"\.middle_block\.attn_norm\.", r".mid.attn_1.norm."),
    (r"\.middle_block\.", r".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"(\.attn(?:\.\d+|_1))\.(q|k|v)_proj\.", r"\1.\2."),
    (r"(\.attn(?:\.\d+|_1))\.out_proj\.", r"\1.proj_out."),
]
PROJECTION = re.compile(r"\.attn(?:\.\d+|_1)\.(?:q|k|v|out)_proj\.weight$")

CONFIG_NAMES = {  # ours: (transformers, the Emu3 repository)
    "codebook_size": ("codebook_size", "codebook_size"),
    "embed_dim": ("embed_dim", "embed_dim"),
    "latent_channels": ("latent_channels", "z_channels"),
    "in_channels": ("in_channels", "in_channels"),
    "out_channels": ("out_channels", "out_channels"),
    "temporal_factor": ("temporal_downsample_factor", "temporal_downsample_factor"),
    "base_channels": ("base_channels", "ch"),
    "channel_multiplier": ("channel_multiplier", "ch_mult"),
    "num_res_blocks": ("num_res_blocks", "num_res_blocks"),
    "attn_resolutions": ("attn_resolutions", "attn_resolutions"),
}
MODEL_TYPES = {"transformers": "emu3_vqgan", "emu3": "Emu3VisionVQ"}
ARCHITECTURES = {"transformers": "Emu3VQVAE", "emu3": "Emu3VisionVQModel"}


def config_from(settings: Mapping[str, Any]) -> VisionTokenizerConfig:
    """Our configuration for a config.json of any naming: ours, transformers' Emu3VQVAE or the Emu3 repository.

    Raises:
        ValueError: a model type that is not a vision tokenizer, or a setting that cannot be carried over.
    """
    kind = settings.get("model_type")
    if kind == VisionTokenizerConfig.model_type:
        return VisionTokenizerConfig.from_dict(dict(settings))
    if kind not in MODEL_TYPES.values():
        known = [VisionTokenizerConfig.model_type, *MODEL_TYPES.values()]
        raise ValueError(f"model_type in config.json is {kind!r}; expected that of a vision tokenizer, one of {known}")
    if settings.get("double_latent") or settings.get("double_z"):
        raise ValueError("a tokenizer with a double latent (double_latent, double_z) cannot be loaded")
    column = 0 if kind == MODEL_TYPES["transformers"] else 1
    found = {ours: settings[names[column]] for ours, names in CONFIG_NAMES.items() if names[column] in settings}
    if column == 0:
        found["num_attention_heads"] = settings.get("num_attention_heads", 1)
    levels = len(found.get("channel_multiplier", VisionTokenizerConfig.channel_multiplier))
    return VisionTokenizerConfig(**found, spatial_factor=2 ** (levels - 1))


def config_to(config: VisionTokenizerConfig, naming: str) -> dict[str, Any]:
    """The config.json of a tokenizer under another naming.

    Raises:
        ValueError: an unknown naming, or an architecture that Emu3 does not have.
    """
    if naming not in MODEL_TYPES:
        raise ValueError(f"naming is {naming!r}; expected one of {['emu', *MODEL_TYPES]}")
    reasons = [
        (config.patch_size != 1, "patches before the first convolution"),
        (not config.spatial_norm, "no spatial norm"),
        (config.quantizer != "vq", f"the quantizer {config.quantizer!r}"),
        (naming == "emu3" and config.num_attention_heads != 1, "several attention heads"),
        (any(width % config.norm_groups for width in config.widths) or config.norm_groups != 32, "other norm groups"),
    ]
    wrong = [reason for failed, reason in reasons if failed]
    if wrong:
        raise ValueError(
            f"Emu3's tokenizer cannot hold this architecture: {', '.join(wrong)}; save it with naming='emu'"
        )
    column = 0 if naming == "transformers" else 1
    found: dict[str, Any] = {names[column]: getattr(config, ours) for ours, names in CONFIG_NAMES.items()}
    if naming == "transformers":
        found |= {"double_latent": False, "hidden_size": config.widths[-1], "attention_dropout": 0.0}
        found["num_attention_heads"] = config.num_attention_heads
    else:
        found |= {"double_z": False, "dropout": 0.0}
    return found | {"model_type": MODEL_TYPES[naming], "architectures": [ARCHITECTURES[naming]]}


def weights_from(weights: Mapping[str, Tensor], quantizer: str = "vq") -> dict[str, Tensor]:
    """Weights under any naming, as `VisionTokenizer.load_weights` wants them: transformers' names, our codebook.

    The VQGAN names of Emu3.5's tokenizer (IBQ, without temporal layers) are the Emu3 repository's; its 1x1 convolutions
    around the codebook have no time axis.
    """
    found = {}
    for name, tensor in weights.items():
        new = "." + re.sub(r"^(model\.)?(vqmodel\.)?", "", name)
        if new[1:] in THEIR_CODEBOOKS:
            found.update({CODEBOOK: tensor[None]} if quantizer == "vq" else {"quantizer.embedding.weight": tensor})
            continue
        if re.fullmatch(r"\.(post_)?quant_conv\.(weight|bias)", new):
            new = new.replace("quant_conv.", "quant_conv.conv.")
            tensor = tensor[:, :, None] if tensor.ndim == 4 else tensor
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        if PROJECTION.search(new) and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]  # a 1x1 convolution
        found[new[1:]] = tensor
    return found


def weights_to(weights: Mapping[str, Tensor], naming: str) -> dict[str, Tensor]:
    """Our weights under another naming ("transformers" or "emu3"), without the state of training."""
    found = {}
    for name, tensor in weights.items():
        if name == CODEBOOK:
            found["quantize.embedding.weight"] = tensor[0]
        if name.startswith("quantizer."):
            continue
        if naming == "emu3":
            if PROJECTION.search("." + name):
                tensor = tensor[:, :, None, None]
            name = "." + name
            for pattern, replacement in BACK:
                name = re.sub(pattern, replacement, name)
            name = name[1:]
        found[name] = tensor
    return found


def inflate(image_weights: Mapping[str, Tensor], video_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an image tokenizer spread into a video tokenizer of the same widths.

    The convolutions around the codebook see the newest frame only (the last tap, arXiv 2409.04410, section 3.3); the
    temporal layers stay as `video_weights` has them, which pass their frames on when they are new.

    Args:
        image_weights: of a tokenizer with `temporal_factor` 1.
        video_weights: freshly made, of the same configuration with a larger factor.
    """
    found = {}
    for name, fresh in video_weights.items():
        given = image_weights.get(name)
        if given is None:
            found[name] = fresh
        elif given.shape == fresh.shape:
            found[name] = given
        elif given.ndim == fresh.ndim == 5 and given.shape[:2] == fresh.shape[:2]:
            spread = fresh.new_zeros(fresh.shape)
            spread[:, :, -1:] = given
            found[name] = spread
        else:
            raise ValueError(
                f"{name} is {tuple(given.shape)} in the image tokenizer and {tuple(fresh.shape)} in the other"
            )
    return found
