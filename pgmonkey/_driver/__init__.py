"""Everything that knows psycopg's insides and the protocol.  Written once: nothing here waits for the server."""
