"""The tokenizers under the name `emu.tokenizers`; their home is the package `emu_tokenizers`. Here they know the bundled models."""

import emu.checkpoints.bundled  # noqa: F401
from emu_tokenizers import *  # noqa: F403
from emu_tokenizers import __all__ as __all__
