"""Configuration: read, resolved, checked, and made into what a pool needs.  Nothing here connects to a server."""
