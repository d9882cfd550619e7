"""The one connection to the server that all clients of a sandbox share, and its one transaction."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import psycopg
from psycopg import sql

from . import _messages
from ._messages import ClosedError, Stream, message

SAVEPOINT = '"pgmonkey sandbox"'
_OWN_SAVEPOINT = '"pgmonkey sandbox settings"'
UNDO = f"ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}"
# The parameters that a server reports; there is no way to ask libpq which they are.
_REPORTED = (
    *("server_version", "server_encoding", "client_encoding", "application_name", "is_superuser", "DateStyle"),
    *("session_authorization", "IntervalStyle", "TimeZone", "integer_datetimes", "standard_conforming_strings"),
    *("default_transaction_read_only", "in_hot_standby", "scram_iterations", "search_path"),
)
LIMITS = frozenset({"idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout"})
"""Parameters with which the server would end a sandbox that waits for its test."""
_NAMES = ", ".join(f"'{name}'" for name in sorted(LIMITS))
# Of those that this version of the server has.
_LIFT = f"SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ({_NAMES})"  # noqa: S608


@dataclass
class Reply:
    """What the server answered to a query of the sandbox's own."""

    rows: list[list[str | None]] = field(default_factory=list)
    error: bytes | None = None
    """The body of its ErrorResponse."""
    notices: bytes = b""
    """Its NoticeResponses, as they came."""


class Backend:
    """A connection with an open transaction, made by psycopg and used by its socket.

    Raises `psycopg.OperationalError` where there is no server, or the connection is encrypted.
    """

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="pgmonkey sandbox")
        pgconn = self._connection.pgconn
        if pgconn.ssl_in_use:
            self._connection.close()
            raise psycopg.OperationalError(
                "a sandbox cannot use an encrypted connection: add sslmode=disable to the address of the test server"
            )
        self.user = self._connection.info.user
        self.pid = pgconn.backend_pid
        self.parameters = {
            name: value.decode() for name in _REPORTED if (value := pgconn.parameter_status(name.encode())) is not None
        }
        """What the server has reported of its parameters."""
        self.applied: dict[str, str] = {}
        """What was set for the clients, by parameter."""
        self.lost = ""
        """Why the transaction is no more; empty as long as it is."""
        self._due = 0
        """How often the server has still to say that it is ready."""
        connected = socket.socket(fileno=os.dup(pgconn.socket))
        connected.setblocking(True)  # for libpq, too, which only closes it
        self._stream = Stream(connected)
        self.changes_user = self.parameters.get("is_superuser") == "on"
        """Whether it may be another user for a client."""
        self.query("BEGIN ISOLATION LEVEL READ COMMITTED")
        self.lift_limits()

    def close(self) -> None:
        """Roll everything back, and close the connection."""
        if not self.lost:
            self.lost = "the sandbox has ended"
            try:
                self._stream.write(message(b"Q", b"ROLLBACK\0"))
                while self._stream.read()[0] != b"Z":
                    pass
            except ClosedError:
                pass
        self._stream.socket.close()
        self._connection.close()

    def cancel(self) -> None:
        """Ask the server to end what is running."""
        self._connection.cancel()

    def ask(self, data: bytes | bytearray) -> None:
        """Send messages that end with a Query or a Sync; raise `ClosedError` where the connection is lost."""
        self._due += 1
        self.write(data)

    def write(self, data: bytes | bytearray) -> None:
        """Send messages that the server does not answer by being ready."""
        if self.lost:
            raise ClosedError(self.lost)
        try:
            self._stream.write(data)
        except ClosedError:
            self._lose("the server has closed the sandbox's connection")

    def drain(self) -> None:
        """Read what is left of the answers to a client that is gone."""
        while self._due:
            self.read()

    def read(self) -> tuple[bytes, bytes]:
        """Return the next message that is for a client; raise `ClosedError` where the connection is lost."""
        while True:
            try:
                kind, body = self._stream.read()
            except ClosedError:
                self._lose("the server has closed the sandbox's connection")
            if kind == b"S":
                name, position = _messages.take_text(body)
                value, _ = _messages.take_text(body, position)
                self.parameters[name.decode()] = value.decode("utf-8", "replace")
                continue
            self._due -= kind == b"Z"
            if kind == b"Z" and body == b"I":
                self._lose("a statement has ended the sandbox's transaction, so what was done may have been stored")
            return kind, body

    def _lose(self, why: str) -> NoReturn:
        self.lost = self.lost or why
        raise ClosedError(self.lost)

    def query(self, text: str) -> Reply:
        """Run statements of the sandbox's own; those after one that failed are not run."""
        self.ask(message(b"Q", text.encode() + b"\0"))
        reply = Reply()
        while True:
            kind, body = self.read()
            if kind == b"Z":
                return reply
            if kind == b"D":
                reply.rows.append(_messages.values_of(body))
            elif kind == b"E":
                reply.error = body
            elif kind == b"N":
                reply.notices += message(kind, body)

    def guarded(self, text: str) -> Reply:
        """Run statements that, if they fail, leave everything as it is."""
        reply = self.query(f"SAVEPOINT {_OWN_SAVEPOINT}; {text}; RELEASE SAVEPOINT {_OWN_SAVEPOINT}")
        if reply.error is not None:
            self.query(f"ROLLBACK TO SAVEPOINT {_OWN_SAVEPOINT}; RELEASE SAVEPOINT {_OWN_SAVEPOINT}")
        return reply

    def lift_limits(self) -> None:
        """Let the transaction be idle for as long as a test takes."""
        self.query(_LIFT)

    def apply(self, wanted: Mapping[str, str]) -> bytes | None:
        """Set the parameters of a client, and those of the last one back; return the body of the server's error."""
        if self.applied == wanted:
            return None
        changes = [f"RESET {_quoted(name)}" for name in self.applied if name not in wanted]
        # The user first: a role belongs to it.
        names = sorted(wanted, key=lambda name: name != "session_authorization")
        changes += [
            f"SELECT pg_catalog.set_config({literal(name)}, {literal(wanted[name])}, false)"
            for name in names
            if self.applied.get(name) != wanted[name]
        ]
        reply = self.guarded("; ".join(changes))
        if reply.error is None:
            self.applied = dict(wanted)
        return reply.error


def literal(value: str) -> str:
    """Return *value* as a constant in SQL."""
    return sql.Literal(value).as_string(None)


def identifier(name: str) -> str:
    """Return *name* in quotes."""
    return sql.Identifier(name).as_string(None)


def _quoted(name: str) -> str:
    if name in ("role", "session_authorization"):
        return name.replace("_", " ")
    return ".".join(map(identifier, name.split(".")))
