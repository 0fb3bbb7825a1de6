"""Configuration of the vision tokenizer: one class chooses factors, widths, quantizer and clip rule."""

# Without `from __future__ import annotations`: `strict` checks values against types, which it must find evaluated.
from functools import wraps
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

LIBRARY_KEYS = {
    *("model_type", "_attn_implementation", "attn_implementation", "name_or_path", "_name_or_path", "_commit_hash"),
    *("torch_dtype", "output_attentions"),
}
"""Keys that transformers adds by itself when it saves or loads a configuration."""

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2409.18869, section 2.2; widths from baaivision/Emu3 (emu3/tokenizer/configuration_emu3visionvq.py)
    "emu3": {},
    # arXiv 2510.26583: 16x, images only, 131,072 codes of width 256; widths from TencentARC/SEED-Voken (IBQ), doubled
    "emu3.5": {
        "spatial_factor": 16,
        "temporal_factor": 1,
        "channel_multiplier": (1, 1, 2, 2, 4),
        "num_res_blocks": 4,
        "attn_resolutions": (4,),
        "latent_channels": 256,
        "embed_dim": 256,
        "codebook_size": 131072,
        "spatial_norm": False,
        "quantizer": "ibq",
        "quantizer_options": {"normalize": False, "entropy": False, "dead_code_ratio": 0.0},
    },
    # 24x24 or 32x32 pictures and short clips on a CPU: seconds to train, 512 codes
    "small": {
        "spatial_factor": 4,
        "channel_multiplier": (1, 2),
        "base_channels": 16,
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "latent_channels": 8,
        "embed_dim": 8,
        "codebook_size": 512,
        "norm_groups": 4,
    },
}


POSITIVE = (
    *("spatial_factor", "temporal_factor", "codebook_size", "embed_dim", "latent_channels", "in_channels"),
    *("out_channels", "base_channels", "num_res_blocks", "num_attention_heads", "norm_groups"),
)


def value_errors(cls: type) -> type:
    """Turn the errors of a strict dataclass, which are plain exceptions, into `ValueError`."""
    init = cls.__init__  # type: ignore[misc]

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@value_errors
@strict
class VisionTokenizerConfig(PreTrainedConfig):
    """Architecture of a `VisionTokenizer`. The defaults are Emu3's (arXiv 2409.18869, section 2.2).

    Args:
        spatial_factor: pixels per code along each side. The levels of `channel_multiplier` halve the picture
            `len(channel_multiplier) - 1` times; what is left of the factor is folded into channels before the first
            convolution (patches), so that `spatial_factor=4` with two levels works on 2x2 patches.
        temporal_factor: frames per latent frame, a power of two. 1 is an image tokenizer without temporal layers.
        codebook_size: codes per codebook.
        embed_dim: width of a code vector.
        latent_channels: channels between the spatial and the temporal layers.
        base_channels: width of the first level.
        channel_multiplier: width of each level as a multiple of `base_channels`.
        num_res_blocks: residual blocks per encoder level; the decoder has one more.
        attn_resolutions: indices of the levels with attention (a level's index, not a size in pixels).
        num_attention_heads: heads of every attention block.
        norm_groups: groups of the group norms. A width that it does not divide takes their greatest common divisor.
        spatial_norm: decoder norms are conditioned on the codes (MoVQ, arXiv 2209.09002).
        quantizer: name of the quantizer, see `emu_tokenizers.quantizers`.
        quantizer_options: keyword arguments of that quantizer.
        chunk: "causal" encodes a clip in one causal call; "independent" encodes every group of `temporal_factor`
            frames separately, as the script in the Emu3 repository does.
    """

    model_type = "emu_vision_tokenizer"

    spatial_factor: int = 8
    temporal_factor: int = 4
    codebook_size: int = 32768
    embed_dim: int = 4
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 256
    channel_multiplier: list[int] | tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: list[int] | tuple[int, ...] = (3,)
    num_attention_heads: int = 1
    norm_groups: int = 32
    spatial_norm: bool = True
    quantizer: str = "vq"
    quantizer_options: dict[str, Any] | None = None
    chunk: str = "causal"

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = [key for key in kwargs if key not in LIBRARY_KEYS]
        if unknown:
            raise ValueError(f"VisionTokenizerConfig has no {', '.join(sorted(unknown))}")
        super().__post_init__(**kwargs)
        self._check_architecture()

    def _check_architecture(self) -> None:
        self.channel_multiplier = tuple(self.channel_multiplier)
        self.attn_resolutions = tuple(self.attn_resolutions)
        self._check_positive()
        halvings = 2 ** (len(self.channel_multiplier) - 1)
        if self.spatial_factor % halvings:
            raise ValueError(
                f"spatial_factor is {self.spatial_factor}; expected a multiple of {halvings}, since the {len(self.channel_multiplier)} "
                f"levels of channel_multiplier {self.channel_multiplier} shrink a picture by that; give fewer levels"
            )
        if self.temporal_factor & (self.temporal_factor - 1):
            raise ValueError(f"temporal_factor is {self.temporal_factor}; expected a power of two (1, 2, 4, ...)")
        if any(not 0 <= level < len(self.channel_multiplier) for level in self.attn_resolutions):
            raise ValueError(
                f"attn_resolutions is {self.attn_resolutions}; expected level indices 0..{len(self.channel_multiplier) - 1}, not sizes in "
                "pixels"
            )
        if self.spatial_norm and self.temporal_factor > 1 and self.embed_dim != self.latent_channels:
            raise ValueError(
                f"embed_dim is {self.embed_dim} and latent_channels is {self.latent_channels}; expected equal numbers, since code "
                "vectors and latents share the decoder's temporal layers"
            )
        if self.chunk not in ("causal", "independent"):
            raise ValueError(f"chunk is {self.chunk!r}; expected 'causal' or 'independent'")

    def _check_positive(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.channel_multiplier or min(self.channel_multiplier) < 1:
            raise ValueError(f"channel_multiplier is {self.channel_multiplier}; expected positive integers")

    @property
    def patch_size(self) -> int:
        """Side of the pixel patches that are folded into channels before the first convolution; 1 for Emu3."""
        return self.spatial_factor // 2 ** (len(self.channel_multiplier) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, from full resolution down."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multiplier)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VisionTokenizerConfig":
        """A named configuration with some fields changed.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset is {name!r}; expected one of {sorted(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})
