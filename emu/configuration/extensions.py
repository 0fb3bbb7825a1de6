"""Packages that add to the tables of this one: modalities, layouts, quantizers, ...

A package names modules under the entry point group `emu.extensions`; importing one registers what it has.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

GROUP = "emu.extensions"


@cache
def load_extensions() -> tuple[str, ...]:
    """Load the extensions of all installed packages, once.

    Returns:
        Their names.

    Raises:
        ValueError: one cannot be loaded; the message names it, its package and the reason.
    """
    names = []
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a stranger's module may raise anything
            package = point.dist.name if point.dist is not None else "an unknown package"
            raise ValueError(
                f"the extension {point.name!r} ({point.value}) of {package} cannot be loaded ({type(error).__name__}: {error}); "
                f"repair or uninstall {package}"
            ) from error
        names.append(point.name)
    return tuple(names)
