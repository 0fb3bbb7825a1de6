"""Quantizers by name."""

from collections.abc import Callable
from functools import partial

from emu_tokenizers.config import VisionTokenizerConfig
from emu_tokenizers.quantizers import Quantizer
from emu_tokenizers.scalar_quantizers import BinaryQuantizer, ScalarQuantizer
from emu_tokenizers.table_quantizers import IndexQuantizer, SimQuantizer
from emu_tokenizers.vq import MultiQuantizer, ResidualQuantizer, VectorQuantizer

QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "vq": VectorQuantizer,
    "residual": ResidualQuantizer,
    "multi": MultiQuantizer,
    "simvq": SimQuantizer,
    "ibq": IndexQuantizer,
    "fsq": ScalarQuantizer,
    "lfq": BinaryQuantizer,
    "bsq": partial(BinaryQuantizer, spherical=True),
}
"""Name -> class, made with (embed_dim, codebook_size, **quantizer_options)."""


def make_quantizer(config: VisionTokenizerConfig) -> Quantizer:
    """The quantizer that a configuration names, with its options.

    Raises:
        ValueError: no quantizer of that name, or options that it does not take.
    """
    if config.quantizer not in QUANTIZERS:
        raise ValueError(f"no quantizer {config.quantizer!r}; there are {sorted(QUANTIZERS)}")
    options = config.quantizer_options or {}
    try:
        return QUANTIZERS[config.quantizer](config.embed_dim, config.codebook_size, **options)
    except TypeError as error:
        raise ValueError(
            f"quantizer_options {options} do not suit the quantizer {config.quantizer!r}: {error}"
        ) from error
