"""The connection keywords of libpq 15 to 18 that are more than plain text: secrets, paths, numbers, switches, choices.

A keyword that is not here, of a newer libpq, is text that may be shown.  Whether the libpq in use knows a keyword is
for `schema.libpq_keywords` to say.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Keyword(NamedTuple):
    """What the value of a keyword is: a ``number`` is whole and not negative, a ``switch`` 0 or 1.

    *hidden* values are never shown.  With *plural*, several are written with commas.
    """

    kind: Literal["text", "path", "number", "switch"] = "text"
    hidden: bool = False
    plural: bool = False
    choices: tuple[str, ...] = ()


_PROTOCOLS = ("3.0", "3.2", "latest")
_TLS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_PREFERENCE = ("disable", "prefer", "require")

KEYWORDS = {
    # Several hosts are tried in turn ("Specifying Multiple Hosts" in libpq's manual); one may be a socket's folder.
    "host": Keyword("path", plural=True),
    "hostaddr": Keyword(plural=True),
    "port": Keyword("number", plural=True),
    "password": Keyword(hidden=True),
    "passfile": Keyword("path", hidden=True),
    "servicefile": Keyword("path"),
    "connect_timeout": Keyword("number"),
    "keepalives": Keyword("switch"),
    "keepalives_idle": Keyword("number"),
    "keepalives_interval": Keyword("number"),
    "keepalives_count": Keyword("number"),
    "tcp_user_timeout": Keyword("number"),
    "target_session_attrs": Keyword(
        choices=("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": Keyword(choices=("disable", "random")),
    "channel_binding": Keyword(choices=_PREFERENCE),
    "min_protocol_version": Keyword(choices=_PROTOCOLS),
    "max_protocol_version": Keyword(choices=_PROTOCOLS),
    "scram_client_key": Keyword(hidden=True),
    "scram_server_key": Keyword(hidden=True),
    "oauth_client_secret": Keyword(hidden=True),
    "sslmode": Keyword(choices=("disable", "allow", "prefer", "require", "verify-ca", "verify-full")),
    "sslnegotiation": Keyword(choices=("postgres", "direct")),
    "sslcompression": Keyword("switch"),
    "sslcert": Keyword("path", hidden=True),
    "sslcertmode": Keyword(choices=("disable", "allow", "require")),
    "sslcrl": Keyword("path"),
    "sslcrldir": Keyword("path"),
    "sslkey": Keyword("path", hidden=True),
    # Whoever reads that file can decrypt what was sent.
    "sslkeylogfile": Keyword("path", hidden=True),
    "sslpassword": Keyword(hidden=True),
    "sslrootcert": Keyword("path", hidden=True),
    "sslsni": Keyword("switch"),
    "ssl_min_protocol_version": Keyword(choices=_TLS),
    "ssl_max_protocol_version": Keyword(choices=_TLS),
    "gssencmode": Keyword(choices=_PREFERENCE),
    "gssdelegation": Keyword("switch"),
    "gsslib": Keyword(choices=("gssapi", "sspi")),
}
PLAIN = Keyword()
