"""The server of a sandbox: it listens on loopback, and puts all clients of a database on one connection."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

import psycopg

from . import _messages
from ._backend import LIMITS
from ._branch import Branch, Counts, Faults, RefusedError
from ._messages import ClosedError, Stream, message, problem, take_text
from ._session import Session
from ._transactions import Transactions

_NOT_SETTINGS = {"user", "database", "options", "replication"}
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens for the clients of one sandbox.  *databases* are the addresses by the names that clients ask for."""

    def __init__(self, dsn: str, databases: Mapping[str, str], patience: float) -> None:
        self.secret = secrets.token_urlsafe(24)
        """The password of the clients."""
        self.faults = Faults()
        self._counted: dict[int, Counts] = {}
        self._dsn = dsn
        self._databases = dict(databases)
        self._patience = patience
        self._branches: dict[str, Branch] = {}
        self._lock = threading.Lock()
        self._clients: dict[int, Transactions] = {}
        """By the key with which a client cancels."""
        self._streams: set[Stream] = set()
        self._threads: set[threading.Thread] = set()
        self._number = 0
        self._ended = False
        self._branch(dsn)  # now, so that an error is the test's own
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name="pgmonkey-sandbox", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _branch(self, dsn: str) -> Branch:
        with self._lock:
            if dsn not in self._branches:
                self._branches[dsn] = Branch(dsn, self._patience, self.faults, self._counted.values())
            return self._branches[dsn]

    def close(self) -> str:
        """Roll everything back and end all connections; return what has gone wrong, if anything has."""
        if self._ended:
            return ""
        self._ended = True
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            pass  # which wakes up the thread that waits for clients
        self._listener.close()
        lost = ""
        for branch in self._branches.values():
            branch.close()
            lost = lost or branch.backend.lost
        self.hang_up()
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(10)
        for branch in self._branches.values():
            branch.backend.close()
        return lost

    def hang_up(self) -> None:
        """End the connections of all clients."""
        for stream in list(self._streams):
            stream.close()

    # -- what tests ask for ---------------------------------------------------------------------------------------

    def begin_counting(self) -> int:
        """Count what clients do from now on; return the number of the count."""
        number = secrets.randbits(31)
        self._counted[number] = Counts()
        return number

    def read_count(self, number: int) -> tuple[list[str], int, int]:
        """Return the statements, the round trips and the connections of a count."""
        counts = self._counted[number]
        return list(counts.texts), counts.round_trips, len(counts.used)

    def end_counting(self, number: int) -> None:
        """Forget a count."""
        del self._counted[number]

    def fail_commit(self, sqlstate: str, words: str) -> None:
        """Have a COMMIT fail, after those that are to fail already."""
        self.faults.commits.append((sqlstate, words))

    def lose_connection(self) -> None:
        """Have the connection end that says something next."""
        self.faults.losses += 1

    def be_away(self, away: bool) -> None:
        """Refuse all clients, or serve them again."""
        self.faults.away = away
        if away:
            self.hang_up()

    # -- in the threads -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._ended:
            connected, _ = self._listener.accept()
            if self.faults.away or self._ended:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connected.close()
                continue
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve, connected)

    def _serve(self, connected: socket.socket) -> None:
        stream = Stream(connected)
        self._streams.add(stream)
        client: Transactions | None = None
        key = 0
        try:
            parameters = self._greet(stream)
            if parameters is None:
                return
            key = secrets.randbits(31)
            client = self._enter(parameters)
            self._clients[key] = client
            session = Session(client, stream)
            session.start(key)
            session.serve()
        except ClosedError:
            if client is not None and client.backend.lost:
                _tell(stream, "57P01", f"the transaction of the sandbox is over: {client.backend.lost}")
        except RefusedError as error:
            _tell(stream, *error.args)
        except psycopg.Error as error:
            _tell(stream, "08006", str(error))
        finally:
            if client is not None:
                client.leave()
                self._clients.pop(key, None)
            self._streams.discard(stream)
            stream.close()
            self._threads.discard(threading.current_thread())

    def _greet(self, stream: Stream) -> dict[str, str] | None:
        """Return the startup parameters of a client that may come in; None for one that only cancels."""
        while True:
            body = stream.read_startup()
            (code,) = struct.unpack_from("!I", body)
            if code in (_messages.SSL, _messages.GSSENC):
                stream.write(b"N")
            elif code == _messages.CANCEL:
                self._cancel(struct.unpack_from("!I", body, 8)[0])
                return None
            else:
                break
        parameters: dict[str, str] = {}
        position = 4
        while body[position : position + 1] not in (b"", b"\0"):
            name, position = take_text(body, position)
            value, position = take_text(body, position)
            parameters[name.decode()] = value.decode("utf-8", "replace")
        if code >> 16 != _messages.VERSION >> 16:
            raise RefusedError("08P01", "a sandbox speaks version 3 of the protocol", "")
        if code != _messages.VERSION:
            stream.write(message(b"v", struct.pack("!II", _messages.VERSION & 0xFFFF, 0)))
        stream.write(message(b"R", struct.pack("!I", 3)))  # the password as it is
        kind, password = stream.read()
        if kind != b"p" or not secrets.compare_digest(password.rstrip(b"\0"), self.secret.encode()):
            raise RefusedError("28P01", "wrong password for the sandbox", "")
        stream.write(message(b"R", struct.pack("!I", 0)))
        return parameters

    def _enter(self, parameters: dict[str, str]) -> Transactions:
        if parameters.get("replication"):
            raise RefusedError("0A000", "replication does not work in a sandbox", "")
        dsn = self._databases.get(parameters.get("database", ""), self._dsn)
        base = {name.lower(): value for name, value in parameters.items() if name not in _NOT_SETTINGS}
        base |= _settings_in(parameters.get("options", ""))
        base = {name: value for name, value in base.items() if name not in LIMITS and not name.startswith("_pq_.")}
        base.setdefault("application_name", "")  # the sandbox's own has another one
        base["session_authorization"] = parameters.get("user", "")
        with self._lock:
            self._number += 1
            number = self._number
        return Transactions(self._branch(dsn), number, base)

    def _cancel(self, key: int) -> None:
        client = self._clients.get(key)
        if client is not None:
            client.cancel()


def _tell(stream: Stream, sqlstate: str, words: str, hint: str = "") -> None:
    with suppress(ClosedError):
        stream.write(problem(b"E", "FATAL", sqlstate, words, hint))


def _settings_in(options: str) -> dict[str, str]:
    """Return the parameters that ``-c name=value`` and ``--name=value`` set."""
    words: list[str] = [""]
    characters = iter(options)
    for character in characters:
        if character == "\\":
            words[-1] += next(characters, "")
        elif character.isspace():
            words.append("")
        else:
            words[-1] += character
    found: dict[str, str] = {}
    following = iter(filter(None, words))
    for word in following:
        if word.startswith("--"):
            word = word[2:]
        elif word.startswith("-c"):
            word = word[2:] or next(following, "")
        name, _, value = word.partition("=")
        found[name.replace("-", "_").lower()] = value
    return found
