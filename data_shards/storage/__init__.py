"""Where shards lie: local files, object stores, commands; retries and the cache."""
