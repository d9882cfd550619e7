"""Everything that knows psycopg's insides and the protocol.  Written once: no caller waits here."""
