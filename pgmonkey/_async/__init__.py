"""What waits, for asyncio: the source of `pgmonkey._sync`, except for `waiting` and `watcher`."""
