"""From raw files to token shards: sources of documents, their encoding in windows, shards of any number of processes."""
