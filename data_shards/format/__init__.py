"""The format of shards: index, tar members, class lists, and keyed random draws."""
