"""Which borrower has which connection: bookkeeping that never waits, shared by both colours."""
