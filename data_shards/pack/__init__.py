"""Writing shards: from a source to tars and their index."""
