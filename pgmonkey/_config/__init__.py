"""Read, resolve and check a configuration, and make the blueprint of a pool.  Nothing here connects to a server."""
