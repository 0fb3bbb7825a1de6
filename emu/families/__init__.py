"""Families of checkpoints, one folder or file each: what a released family is stands there and nowhere else.

    from emu.families import register
    register("mine", MyFamily())       # a subclass of emu.families.base.Family

`emu.families.detection.find_family` asks each of them whether a folder is its own.
"""

from __future__ import annotations

from emu.families.base import Family
from emu.families.emu3 import Emu3Family
from emu.families.emu35 import Emu35Family
from emu.families.llama import LlamaFamily
from emu.families.own import OwnFamily
from emu.families.transformers_emu3 import TransformersEmu3Family
from emu.templates import Templates
from emu_tokenizers.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "family",
    {
        family.name: family
        for family in (OwnFamily(), TransformersEmu3Family(), Emu3Family(), Emu35Family(), LlamaFamily())
    },
)
"""Families by the name that users give."""

register = FAMILIES.register
unregister = FAMILIES.unregister


def named_templates() -> dict[str, Templates]:
    """The templates of all families by name; any of them can be used with any model."""
    return {name: templates for family in FAMILIES.values() for name, templates in family.templates.items()}


__all__ = ["FAMILIES", "Family", "named_templates", "register", "unregister"]
