"""What a configuration says: recipes read and merged with their places, values resolved, objects found by class path.

The parts that read recipes load OmegaConf; import them from their files where they are needed.
"""

from __future__ import annotations

from emu.configuration.extensions import load_extensions
from emu.configuration.objects import import_object, search_working_folder

__all__ = ["import_object", "load_extensions", "search_working_folder"]
