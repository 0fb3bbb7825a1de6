"""What transformers' Emu3 calls its tensors.

Ours are the names of Llama; transformers puts `text_model.` before them on disk, or `model.text_model.` in memory, and keeps the vision
tokenizer under `vqmodel.` in the same files.
"""

from __future__ import annotations

import re

RENAMES = {r"^text_model\.lm_head\.": "lm_head.", r"^(?:model\.)?text_model\.(?:model\.)?": "model."}
"""Pattern -> replacement that turns transformers' names into ours, in order."""

VISION_PREFIX = re.compile(r"^(?:model\.)?vqmodel\.")
"""Before the names of the vision tokenizer."""
