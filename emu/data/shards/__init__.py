"""Token shards: documents tokenised once, stored as checked, memory-mapped arrays, read in any order (docs/formats.md)."""

from emu.data.shards.checksums import DamagedShards
from emu.data.shards.reading import TokenShards
from emu.data.shards.writing import TokenizedDocument, read_entry, write_manifest, write_shard

__all__ = ["DamagedShards", "TokenShards", "TokenizedDocument", "read_entry", "write_manifest", "write_shard"]
