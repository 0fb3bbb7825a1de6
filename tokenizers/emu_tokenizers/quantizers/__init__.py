"""Quantizers by name.

A new one is a subclass of `emu_tokenizers.quantizers.base.Quantizer` in a file of its own, and one line here or one call elsewhere:

    register("mine", MyQuantizer)    # then VisionTokenizerConfig(quantizer="mine", quantizer_options={...})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from emu_tokenizers.quantizers.base import Quantizer
from emu_tokenizers.quantizers.learned import IndexQuantizer, SimQuantizer
from emu_tokenizers.quantizers.scalar import BinaryQuantizer, ScalarQuantizer
from emu_tokenizers.quantizers.vq import MultiQuantizer, ResidualQuantizer, VectorQuantizer
from emu_tokenizers.registry import Registry

QUANTIZERS: Registry[Callable[..., Quantizer]] = Registry(
    "quantizer",
    {
        "vq": VectorQuantizer,
        "residual": ResidualQuantizer,
        "multi": MultiQuantizer,
        "simvq": SimQuantizer,
        "ibq": IndexQuantizer,
        "fsq": ScalarQuantizer,
        "lfq": BinaryQuantizer,
        "bsq": partial(BinaryQuantizer, spherical=True),
    },
)
"""Name -> class, made with (embed_dim, codebook_size, **quantizer_options)."""
register = QUANTIZERS.register


def make_quantizer(
    name: str, embed_dim: int, codebook_size: int, options: Mapping[str, Any] | None = None
) -> Quantizer:
    """The quantizer of a name, with its options.

    Raises:
        ValueError: there is no quantizer of that name, or it does not take these options.
    """
    make, options = QUANTIZERS.find(name), dict(options or {})
    try:
        return make(embed_dim, codebook_size, **options)
    except TypeError as error:
        raise ValueError(f"quantizer_options {options} do not suit the quantizer {name!r}: {error}") from error
