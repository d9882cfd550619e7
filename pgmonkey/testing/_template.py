"""Template databases, made once for each schema, and the databases that are cloned from them."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from psycopg import sql

from ._schema import Schema
from ._server import TestServer, worker_number

_PREFIX = "pgmonkey_template_"
# Days after which a template that no run has used is dropped.
_KEPT_FOR = 14
_numbers = itertools.count(1)
# Copying blocks through the WAL is faster for a small database; copying files, which needs two checkpoints, for a large
# one ("CREATE DATABASE" in PostgreSQL's manual).
_LARGE = 64 * 2**20


class TestDatabase:
    """A database for tests."""

    __test__ = False

    def __init__(self, server: TestServer, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def dsn(self) -> str:
        """Its URL."""
        return self.server.dsn(self.name)

    @property
    def config(self) -> dict[str, Any]:
        """A configuration of pgmonkey for it."""
        return self.server.config(self.name)

    @property
    def django_settings(self) -> dict[str, str]:
        """Its address as Django's settings have it: to update ``connections["default"].settings_dict`` with."""
        address = self.config["connection_settings"]
        keywords = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
        return {name: str(address.get(keyword) or "") for name, keyword in keywords.items()}

    def connect(self) -> Any:
        """Return a connection of psycopg's own to it, in autocommit."""
        return self.server.connect(self.name)


class Template(TestDatabase):
    """A database that holds a schema, to be cloned; nobody connects to it."""

    @cached_property
    def _size(self) -> int:
        row = self.server.administrator.execute("SELECT pg_database_size(%s)", [self.name]).fetchone()
        return row[0] if row else 0

    @contextmanager
    def clone(self) -> Iterator[TestDatabase]:
        """Make a database from it for a block."""
        name = f"pgmonkey_test_{worker_number()}_{next(_numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, self.name)))
        if self.server.version >= 150000:
            statement += sql.SQL(f" STRATEGY {'file_copy' if self._size > _LARGE else 'wal_log'}")
        self.server.administrator.execute(statement)
        try:
            yield TestDatabase(self.server, name)
        finally:
            self.server.drop(name)


def template(server: TestServer, schema: Schema) -> Template:
    """Return the template with *schema*, which is made if there is none; other processes wait meanwhile."""
    digest = hashlib.sha256(schema.key.encode()).hexdigest()[:16]
    name = _PREFIX + digest
    with server.connect() as connection:
        # The same for all processes, and released by the server however this one ends.
        connection.execute("SELECT pg_advisory_lock(%s)", [int(digest[:15], 16)])
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone()
        if found is None:
            making = f"{name}_making"
            server.drop(making)  # of a run that was interrupted
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(making)))
            schema.load(server.dsn(making))
            _rename(connection, making, name)
            _drop_unused(server, connection)
        comment = f"pgmonkey.testing {int(time.time())}"
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), comment))
    return Template(server, name)


def _rename(connection: Any, making: str, name: str) -> None:
    # A session that the loading function has forgotten would be in the way, now and at each clone.
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        [making],
    )
    statement = "ALTER DATABASE {} RENAME TO {}; ALTER DATABASE {} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false"
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, (making, name, name))))


def _drop_unused(server: TestServer, connection: Any) -> None:
    rows = connection.execute(
        "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database WHERE starts_with(datname, %s)",
        [_PREFIX],
    )
    for name, comment in rows.fetchall():
        label, _, used = (comment or "").partition(" ")
        if label == "pgmonkey.testing" and used.isdigit() and int(used) < time.time() - _KEPT_FOR * 86400:
            connection.execute(sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(sql.Identifier(name)))
            server.drop(name)
