"""Token shards: documents tokenised once, stored as checked, memory-mapped arrays, read in any order (docs/formats.md)."""

from emu.data.shards.checksums import DamagedShards
from emu.data.shards.facts import contents, what_is_trained
from emu.data.shards.merging import differing, merge
from emu.data.shards.reading import TokenShards
from emu.data.shards.writing import MANIFEST, TokenizedDocument, read_entry, write_manifest, write_shard

__all__ = [
    "MANIFEST",
    "DamagedShards",
    "TokenShards",
    "TokenizedDocument",
    "contents",
    "differing",
    "merge",
    "read_entry",
    "what_is_trained",
    "write_manifest",
    "write_shard",
]
