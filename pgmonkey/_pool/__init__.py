"""Who has which connection: bookkeeping without I/O, shared by both colours."""
