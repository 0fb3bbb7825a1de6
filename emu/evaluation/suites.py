"""What `emu evaluate` measures."""

from __future__ import annotations

WORLDS_FILE = "worlds.json"
"""In a model's folder: the worlds that it was trained on, by name and fingerprint, and the size of their pictures."""
