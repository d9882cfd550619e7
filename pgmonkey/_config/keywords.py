"""The table of all keys: what each may hold and what it is for.  It validates, and the JSON Schema is made from it.

`KEYWORDS` are the connection keywords of libpq 15 to 18.  One that is not there, of a newer libpq, is text that may be
shown; whether the libpq in use knows a keyword is for `schema.libpq_keywords` to say.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Holds = Literal["text", "host", "path", "number", "port", "seconds", "switch", "boolean", "keys", "code"]
"""What a value is.

``number``, ``port`` and ``seconds`` may also be written as text, with blanks around; a ``switch`` is libpq's 0 or 1;
``keys`` is a mapping; ``code`` is what only Python code can give.
"""


class Key(NamedTuple):
    """What a key is for, and what it may hold.

    *hidden* values are never shown.  With *plural*, several are written with commas, or as a list.  *least* is the
    smallest number; for ``seconds``, 0 allows nothing less than 0, and None nothing that is not greater than 0.
    """

    about: str
    holds: Holds = "text"
    least: int | None = 0
    choices: tuple[str, ...] = ()
    hidden: bool = False
    plural: bool = False


# With re.fullmatch(), and in the JSON Schema: only what Python's and JavaScript's expressions have in common.
NUMBER = r"\s*[0-9]{1,18}\s*"
POSITIVE = r"\s*0*[1-9][0-9]{0,17}\s*"
_PORT = r"\s*0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])\s*"
# A name, or a socket's folder, or "@" and the socket's name where it has none; in names it would follow a password.
_HOST = "([/@][^,]*|[^/@,][^@,]*)?"
HOSTS = rf"{_HOST}(,{_HOST})*"
# Of several, one may be left out, which is then the default.
PORTS = rf"{_PORT}|({_PORT}|\s*)(,({_PORT}|\s*))+"
SECONDS = r"\s*([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15})([eE][-+]?[0-9]{1,2})?\s*"
POSITIVE_SECONDS = rf"(?=[^eE]*[1-9]){SECONDS}"
PARAMETER = r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*"
"""The name of a server parameter; a dot separates an extension's prefix, as in auto_explain.log_min_duration."""
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""The words for booleans, in upper or lower case."""


def is_written(pattern: str, text: str) -> bool:
    """Tell whether all of *text* is as *pattern*, one of this module, says."""
    return re.fullmatch(pattern, text, re.ASCII) is not None


_TLS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_PROTOCOLS = ("3.0", "3.2", "latest")
_PREFERENCE = ("disable", "prefer", "require")

KEYWORDS = {
    # Several hosts are tried in turn ("Specifying Multiple Hosts" in libpq's manual); one may be a socket's folder.
    "host": Key(
        "The server's name or address, or the folder of its socket; several are tried in turn.", "host", plural=True
    ),
    "hostaddr": Key("The server's IP address, which spares looking up the name.", plural=True),
    "port": Key("The server's port (5432).", "port", plural=True),
    "dbname": Key("The database; the user's name by default."),
    "user": Key("Who connects."),
    "password": Key("The password; better a reference, such as '${PGPASSWORD}' or from_file.", hidden=True),
    "passfile": Key("The path of a password file (~/.pgpass).", "path", hidden=True),
    "require_auth": Key("The authentication methods that are accepted, such as scram-sha-256."),
    "channel_binding": Key("Whether the authentication is bound to the TLS connection.", choices=_PREFERENCE),
    "connect_timeout": Key("How long each host may take to answer, in seconds (10).", "number"),
    "client_encoding": Key("The encoding of the client; leave it to psycopg."),
    "options": Key("Command-line options for the server, such as -c geqo=off; better in sync_settings."),
    "application_name": Key("The name that the server's views and logs show."),
    "fallback_application_name": Key("The name where application_name says nothing."),
    "keepalives": Key("Whether idle connections are probed (true).", "switch"),
    "keepalives_idle": Key("Seconds of silence before the first probe (30).", "number"),
    "keepalives_interval": Key("Seconds between probes (10).", "number"),
    "keepalives_count": Key("How many probes may be lost (3).", "number"),
    "tcp_user_timeout": Key("How long what was sent may stay unacknowledged, in milliseconds (30000).", "number"),
    "replication": Key("For the replication protocol; leave it out."),
    "gssencmode": Key("Whether the connection is encrypted by GSSAPI.", choices=_PREFERENCE),
    "sslmode": Key(
        "Whether the connection is encrypted by TLS, and the server's certificate verified.",
        choices=("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    ),
    "sslnegotiation": Key("How TLS is begun; direct needs a server of version 17.", choices=("postgres", "direct")),
    "sslcompression": Key("Whether TLS compresses, which libpq ignores.", "switch"),
    "sslcert": Key("The path of the client's certificate.", "path", hidden=True),
    "sslkey": Key("The path of the client's private key.", "path", hidden=True),
    # Whoever reads that file can decrypt what was sent.
    "sslkeylogfile": Key("The path of a file for the keys of TLS, for debugging only.", "path", hidden=True),
    "sslpassword": Key("The password of the client's private key.", hidden=True),
    "sslcertmode": Key("Whether the client sends its certificate.", choices=("disable", "allow", "require")),
    "sslrootcert": Key("The path of the certificate authorities, or system.", "path", hidden=True),
    "sslcrl": Key("The path of the certificate revocation list.", "path"),
    "sslcrldir": Key("The folder of certificate revocation lists.", "path"),
    "sslsni": Key("Whether the name of the host is sent in clear (true).", "switch"),
    "requirepeer": Key("The system user that the server must run as, for sockets."),
    "ssl_min_protocol_version": Key("The lowest version of TLS (TLSv1.2).", choices=_TLS),
    "ssl_max_protocol_version": Key("The highest version of TLS.", choices=_TLS),
    "min_protocol_version": Key("The lowest version of PostgreSQL's protocol (3.0).", choices=_PROTOCOLS),
    "max_protocol_version": Key("The highest version of PostgreSQL's protocol (3.0).", choices=_PROTOCOLS),
    "krbsrvname": Key("The name of the Kerberos service (postgres)."),
    "gsslib": Key("The library for GSSAPI, on Windows.", choices=("gssapi", "sspi")),
    "gssdelegation": Key("Whether GSSAPI credentials are passed on to the server.", "switch"),
    "scram_client_key": Key("The client's key for SCRAM, in the place of a password.", hidden=True),
    "scram_server_key": Key("The server's key for SCRAM.", hidden=True),
    "service": Key("The name of a service in the service file."),
    "servicefile": Key("The path of the service file (~/.pg_service.conf).", "path"),
    "target_session_attrs": Key(
        "Which of several servers is accepted.",
        choices=("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": Key("Whether several hosts are tried at random.", choices=("disable", "random")),
    "oauth_issuer": Key("The URL of the OAuth issuer."),
    "oauth_client_id": Key("The client's identifier for OAuth."),
    "oauth_client_secret": Key("The client's secret for OAuth.", hidden=True),
    "oauth_scope": Key("The scope that is asked for."),
}
PLAIN = Key("")

ARGUMENTS = {
    "autocommit": Key("psycopg's: each statement is its own transaction in a lent connection (false).", "boolean"),
    "prepare_threshold": Key("psycopg's: prepare what was executed so many times (5); null for never.", "number"),
    "row_factory": Key("psycopg's.", "code"),
    "cursor_factory": Key("psycopg's.", "code"),
    "context": Key("psycopg's.", "code"),
}
"""The arguments of psycopg.connect() beside libpq's keywords."""
OURS = {
    "command_timeout": Key(
        "How long a statement may take, in seconds, by the client's clock; then it is cancelled.", "seconds", None
    ),
    "pgbouncer": Key("Whether the server is PgBouncer in transaction mode.", "boolean"),
    "slow_statement_threshold": Key(
        "Seconds after which a statement is logged as a warning, 0 for never (0).", "seconds"
    ),
    "log_parameters": Key("Whether the log shows the parameters and constants of statements (false).", "boolean"),
    "telemetry": Key("Whether OpenTelemetry and Prometheus are told, where the program uses them (true).", "boolean"),
    "trace_to_server": Key(
        "Whether a transaction shows its trace to the server, as application_name (false).", "boolean"
    ),
    "live_view": Key("Whether 'pgmonkey top' can look at the pool while it is in use (false).", "boolean"),
    "query_tags": Key("Whether statements end with a comment: application, framework, route (false).", "boolean"),
}
"""pgmonkey's own keys, which psycopg does not know."""
CONNINFO = Key("A URL or connection string, which the other keys override: '${DATABASE_URL}'.", hidden=True)

POOL = {
    "min_size": Key("Connections to keep open (4, or max_size if that is less).", "number"),
    "max_size": Key("Connections that may exist at a time (min_size).", "number", 1),
    "open": Key("Whether to connect at once, not at the first borrow (true).", "boolean"),
    "name": Key("What log records and errors call the pool."),
    "timeout": Key("How long a borrower waits for a connection, in seconds (30).", "seconds", None),
    "max_waiting": Key("How many may wait for a connection, 0 for any number (0).", "number"),
    "max_lifetime": Key("Greatest age of a connection, in seconds (3600).", "seconds", None),
    "max_idle": Key("Seconds after which an idle connection beyond min_size is closed (600).", "seconds", None),
    "reconnect_timeout": Key("Seconds of failure after which reconnect_failed is called, 0 for ever (300).", "seconds"),
    "num_workers": Key("Accepted; there are no workers (3).", "number", 1),
    "close_returns": Key("Whether conn.close() gives back instead of closing (false).", "boolean"),
    "check_on_checkout": Key("Whether to ask the server (SELECT 1) before lending (false).", "boolean"),
    "clean_on_return": Key(
        "Whether to undo what a borrower left in the session (true).", "boolean", choices=("always",)
    ),
    "open_timeout": Key("How long opening keeps trying to reach the server, in seconds (0).", "seconds"),
    "leak_detection_threshold": Key(
        "Seconds after which a borrowed connection is reported, 0 for never (0).", "seconds"
    ),
    "configure": Key("A function that sets up each new connection.", "code"),
    "check": Key("A function that looks at a connection before it is lent.", "code"),
    "reset": Key("A function that resets a connection that comes back.", "code"),
    "reconnect_failed": Key("A function that is called when the server stays away.", "code"),
    "connection_class": Key("The class of the connections.", "code"),
    "kwargs": Key("More arguments for psycopg's connect().", "keys"),
}
"""The keys of ``pool_settings`` and ``async_pool_settings``."""

SECTIONS = {
    "connection_type": "What get_database_connection() returns when it is not told (normal).",
    "connection_settings": "How to connect: libpq's keywords, psycopg's autocommit and prepare_threshold, and more.",
    "pool_settings": "The pool of 'normal' and 'pool': sizes in connections, times in seconds.",
    "sync_settings": "Server parameters of every session of 'normal' and 'pool'.",
    "async_settings": "Server parameters of every session of 'async' and 'async_pool'.",
    "async_pool_settings": "The pool of 'async' and 'async_pool': sizes in connections, times in seconds.",
}
PROFILES = "profiles"
