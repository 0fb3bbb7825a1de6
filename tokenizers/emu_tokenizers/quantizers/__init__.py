"""Quantizers by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from emu_tokenizers.quantizers.base import Quantizer
from emu_tokenizers.quantizers.learned import IndexQuantizer, SimQuantizer
from emu_tokenizers.quantizers.scalar import BinaryQuantizer, ScalarQuantizer
from emu_tokenizers.quantizers.vq import MultiQuantizer, ResidualQuantizer, VectorQuantizer

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


def make_quantizer(
    name: str, embed_dim: int, codebook_size: int, options: Mapping[str, Any] | None = None
) -> Quantizer:
    """The quantizer of a name, with its options.

    Raises:
        ValueError: no quantizer of that name, or options that it does not take.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"no quantizer {name!r}; there are {sorted(QUANTIZERS)}")
    options = dict(options or {})
    try:
        return QUANTIZERS[name](embed_dim, codebook_size, **options)
    except TypeError as error:
        raise ValueError(f"quantizer_options {options} do not suit the quantizer {name!r}: {error}") from error
