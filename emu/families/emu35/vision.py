"""The vision tokenizer of Emu3.5: a plain 2D autoencoder with index backpropagation quantization.

Its folder holds `config.yaml` (or config.json) with `ddconfig`, `n_embed` and `embed_dim`, and a state dict in safetensors or pickled
(`src/vision_tokenizer/` of baaivision/Emu3.5). Names follow the same rules as those of Emu3's tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from emu.checkpoints.weights import WEIGHTS, Checkpoint
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.files import read_json, write_file
from emu_tokenizers.vision.naming import CODEBOOK, weights_from, weights_to

KEYS = {"ddconfig", "n_embed", "embed_dim"}
ARCHITECTURE = {
    *(
        "spatial_factor",
        "temporal_factor",
        "latent_channels",
        "channel_multiplier",
        "attn_resolutions",
        "spatial_norm",
        "quantizer",
    ),
    *("quantizer_options", "norm_groups", "patch_size", "num_attention_heads"),
}
"""Fields of our configuration that the settings must give back."""

NOT_WEIGHTS = ("loss.", "discriminator.", "ema.")
"""Parts of a training checkpoint that encoding and decoding do not need."""


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """The settings of an Emu3.5 tokenizer's folder, or None where it is not one."""
    for name in ("config.yaml", "config.json"):
        file = Path(folder) / name
        if file.is_file():
            table = read_json(file) if name.endswith(".json") else yaml.safe_load(file.read_text())
            if isinstance(table, dict) and set(table) >= KEYS:
                return table
    return None


def ibq_config(table: Mapping[str, Any]) -> VisionTokenizerConfig:
    """Our configuration of an Emu3.5 tokenizer.

    Raises:
        ValueError: it has features that ours lacks.
    """
    inner = table["ddconfig"]
    if inner.get("double_z", True):
        raise ValueError(
            "ddconfig has double_z true; the vision tokenizer here has single latents, so it cannot be read"
        )
    levels = range(len(inner["ch_mult"]))
    sides = [inner["resolution"] // 2**level for level in levels]
    return VisionTokenizerConfig(
        spatial_factor=2 ** (len(levels) - 1),
        temporal_factor=1,
        codebook_size=table["n_embed"],
        embed_dim=table["embed_dim"],
        latent_channels=inner["z_channels"],
        in_channels=inner["in_channels"],
        out_channels=inner["out_ch"],
        base_channels=inner["ch"],
        channel_multiplier=list(inner["ch_mult"]),
        num_res_blocks=inner["num_res_blocks"],
        attn_resolutions=[level for level in levels if sides[level] in inner["attn_resolutions"]],
        spatial_norm=False,
        quantizer="ibq",
        quantizer_options={"normalize": bool(table.get("l2_normalize")), "entropy": False, "dead_code_ratio": 0.0},
    )


def ibq_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes of an Emu3.5 tokenizer's tensors."""
    ours = weights_from({name: tensor for name, tensor in state.items() if not name.startswith(NOT_WEIGHTS)})
    if CODEBOOK in ours:
        ours["quantizer.embedding.weight"] = ours.pop(CODEBOOK)[0]
    for name in ("quant_conv", "post_quant_conv"):
        for part in ("weight", "bias"):
            tensor = ours.pop(f"{name}.{part}", None)
            if tensor is not None:  # a 2D convolution is a 3D one of a single frame
                ours[f"{name}.conv.{part}"] = tensor[:, :, None] if part == "weight" else tensor
    return ours


def ibq_settings(config: VisionTokenizerConfig) -> dict[str, Any]:
    """The settings of an Emu3.5 tokenizer, the inverse of `ibq_config`.

    Raises:
        ValueError: its architecture is another one.
    """
    levels = len(config.channel_multiplier)
    resolution = 16 * 2**levels  # names the levels with attention by the side of their maps, and says nothing else
    inner = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": resolution,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multiplier),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [resolution // 2**level for level in config.attn_resolutions],
        "dropout": 0.0,
    }
    options = config.quantizer_options or {}
    table: dict[str, Any] = {"ddconfig": inner, "n_embed": config.codebook_size, "embed_dim": config.embed_dim}
    table |= {"beta": 0.25, "use_entropy_loss": False}
    if options.get("normalize", True):
        table["l2_normalize"] = True
    again, ours = ibq_config(table).to_dict(), config.to_dict()
    wrong = sorted(name for name in again if name in ARCHITECTURE and again[name] != ours[name])
    if wrong:
        raise ValueError(
            f"Emu3.5's tokenizer cannot hold this architecture: {', '.join(f'{name} {ours[name]!r}' for name in wrong)}; keep it in the "
            "format 'emu'"
        )
    return table


def ibq_state(tokenizer: VisionTokenizer) -> dict[str, Tensor]:
    """The tensors of an Emu3.5 tokenizer under its makers' names and shapes, the inverse of `ibq_tensors`."""
    own = tokenizer.state_dict()
    state = weights_to(own, "emu3")
    state["quantize.embedding.weight"] = own["quantizer.embedding.weight"]
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"] = state.pop(f"{name}.conv.weight")[:, :, 0]
        state[f"{name}.bias"] = state.pop(f"{name}.conv.bias")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write_ibq(folder: str | Path, tokenizer: VisionTokenizer) -> None:
    """Write an Emu3.5 tokenizer as its makers' settings with safetensors.

    Raises:
        ValueError: its architecture is another one; nothing was written.
    """
    settings, folder = ibq_settings(tokenizer.config), Path(folder)
    write_file(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    save_file(ibq_state(tokenizer), folder / WEIGHTS, metadata={"format": "pt"})


def read_ibq(
    folder: str | Path, settings: Mapping[str, Any], allow_pickle: str | Iterable[str] = ()
) -> VisionTokenizer:
    """The tokenizer of a folder whose settings were read.

    Raises:
        FileNotFoundError: its weights are missing.
        ValueError: a broken file, pickled weights that were not allowed, or tensors that do not fit the settings.
    """
    checkpoint = Checkpoint.open(folder, allow_pickle)
    tokenizer = VisionTokenizer(ibq_config(settings)).eval()
    tokenizer.load_weights(ibq_tensors(dict(checkpoint.tensors())), str(folder))
    return tokenizer
