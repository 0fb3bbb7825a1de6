"""The operations under the name `emu.kernels`; their home is the package `emu_kernels`."""

from emu_kernels import *  # noqa: F403
from emu_kernels import __all__ as __all__
