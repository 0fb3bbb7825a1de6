"""Quantizers by name."""

from collections.abc import Callable
from typing import Any

from emu_tokenizers.config import VisionTokenizerConfig
from emu_tokenizers.quantizers import Quantizer
from emu_tokenizers.vq import VectorQuantizer


def _vq(config: VisionTokenizerConfig, **options: Any) -> Quantizer:
    return VectorQuantizer(config.embed_dim, config.codebook_size, **options)


QUANTIZERS: dict[str, Callable[..., Quantizer]] = {"vq": _vq}


def make_quantizer(config: VisionTokenizerConfig) -> Quantizer:
    """The quantizer that a configuration names, with its options.

    Raises:
        ValueError: no quantizer of that name, or options that it does not take.
    """
    if config.quantizer not in QUANTIZERS:
        raise ValueError(f"no quantizer {config.quantizer!r}; there are {sorted(QUANTIZERS)}")
    options = config.quantizer_options or {}
    try:
        return QUANTIZERS[config.quantizer](config, **options)
    except TypeError as error:
        raise ValueError(
            f"quantizer_options {options} do not suit the quantizer {config.quantizer!r}: {error}"
        ) from error
