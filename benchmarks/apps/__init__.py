"""The same two endpoints for each framework and each library: one row by its key, and the same without a database."""
