"""What waits, for threads: generated from `pgmonkey._async`, except for `waiting` and `watcher`."""
