"""PostgreSQL's protocol: messages read from a socket, and those that a sandbox makes itself."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

# The requests that come in the place of a startup message, and the version that both sides speak.
CANCEL, SSL, GSSENC = 80877102, 80877103, 80877104
VERSION = 3 << 16

_HEAD = struct.Struct("!cI")
_LENGTH = struct.Struct("!I")


class ClosedError(Exception):
    """The other side is gone."""


class Stream:
    """Reads whole messages from a socket, and writes to it."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._buffer = bytearray()
        self._position = 0

    def read_startup(self) -> bytes:
        """Return the body of a message that has no type; raise `ClosedError` at the end."""
        (length,) = _LENGTH.unpack(self._take(4))
        if not 4 <= length <= 100_000:
            raise ClosedError
        return self._take(length - 4)

    def read(self) -> tuple[bytes, bytes]:
        """Return type and body of the next message; raise `ClosedError` at the end."""
        kind, length = _HEAD.unpack(self._take(5))
        return kind, self._take(length - 4)

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        while len(buffer) - self._position < size:
            if self._position:
                del buffer[: self._position]
                self._position = 0
            try:
                received = self.socket.recv(max(65536, size - len(buffer)))
            except OSError:
                received = b""
            if not received:
                raise ClosedError
            buffer += received
        start = self._position
        self._position = start + size
        return bytes(memoryview(buffer)[start : start + size])

    def write(self, data: bytes | bytearray) -> None:
        """Send all of *data*; raise `ClosedError` when the other side is gone."""
        try:
            self.socket.sendall(data)
        except OSError:
            raise ClosedError from None

    def close(self) -> None:
        """Close the socket, and wake up who reads from it."""
        with suppress(OSError):  # it is closed already
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Return a message of type *kind*."""
    return _HEAD.pack(kind, len(body) + 4) + body


def text(*parts: bytes) -> bytes:
    """Return *parts*, each with the zero byte that ends it."""
    return b"".join(part + b"\0" for part in parts)


def take_text(body: bytes, start: int = 0) -> tuple[bytes, int]:
    """Return the text at *start* of *body*, and where the next thing begins."""
    end = body.index(b"\0", start)
    return body[start:end], end + 1


def problem(kind: bytes, severity: str, sqlstate: str, words: str, hint: str = "") -> bytes:
    """Return an ErrorResponse, or a NoticeResponse where *kind* is ``N``."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": words, **({"H": hint} if hint else {})}
    return message(kind, _body(fields))


def fields_of(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse or NoticeResponse by their letters."""
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def with_hint(body: bytes, hint: str) -> bytes:
    """Return the *body* of an ErrorResponse with another *hint*."""
    return _body({**fields_of(body), "H": hint})


def _body(fields: Mapping[str, str]) -> bytes:
    return text(*(f"{letter}{value}".encode() for letter, value in fields.items())) + b"\0"


def values_of(body: bytes) -> list[str | None]:
    """Return the values of a DataRow whose columns are text."""
    (count,) = struct.unpack_from("!H", body)
    values: list[str | None] = []
    position = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, position)
        position += 4
        values.append(None if length < 0 else body[position : position + length].decode("utf-8", "replace"))
        position += max(length, 0)
    return values
