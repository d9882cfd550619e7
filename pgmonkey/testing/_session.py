"""One client of a sandbox: to it, this is a server that speaks PostgreSQL's protocol."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from . import _messages
from ._branch import RefusedError
from ._messages import ClosedError, Stream, message, problem, text
from ._statements import Part, split
from ._transactions import CURE, ToldError, Transactions

# Errors of statements that cannot be part of a transaction.
_NOT_INSIDE = ("25001", "2D000")
_FLUSH = 65536


class Session:
    """Serves one client, in a thread of its own, until it leaves."""

    def __init__(self, client: Transactions, stream: Stream) -> None:
        self._transactions = client
        self._branch = client.branch
        self._backend = client.backend
        self._stream = stream
        self._out = client.out
        self._held = b""
        """The CommandComplete that is not true before the COMMIT that belongs to it."""
        self._executing: deque[Part | None] = deque()
        # -- the extended protocol
        self._portals: dict[bytes, Part | None] = {}
        self._segment = bytearray()
        """What is for the server and not sent yet."""
        self._skipping = False
        """Whether all is ignored until the next Sync."""
        self._closing: deque[bool] = deque()
        """For each Close that was sent, whether the client sent it."""

    def start(self, secret: int) -> None:
        """Tell the client all that a server tells it at the beginning; *secret* is the key to cancel with."""
        self._transactions.start()
        self._out += message(b"K", struct.pack("!II", self._backend.pid, secret))
        self._ready()

    def serve(self) -> None:
        """Answer the client until it leaves; raise `ClosedError` when it is gone."""
        extended: dict[bytes, Callable[[bytes], None]] = {
            b"P": self._parse,
            b"B": self._bind,
            b"D": self._describe,
            b"E": self._execute,
            b"C": self._close,
            b"H": self._flush_message,
        }
        while True:
            kind, body = self._stream.read()
            self._branch.faults.before_message()
            if kind == b"X":
                return
            if kind == b"Q":
                self._branch.count_round_trip()
                self._simple(body[:-1])
            elif kind == b"S":
                self._branch.count_round_trip()
                self._sync()
            elif kind in extended:
                if not self._skipping:
                    self._attempt(extended[kind], body)
            elif kind not in b"dcf":  # the rest of a COPY that failed
                raise ClosedError

    def _ready(self) -> None:
        if self._transactions.has_turn:
            self._transactions.tell()
        self._out += message(b"Z", self._transactions.status.encode())
        self._send()

    def _send(self) -> None:
        out = bytes(self._out)
        self._out.clear()
        self._stream.write(out)

    def _text_of(self, part: Part) -> bytes:
        """Return the text of a statement, with the names of prepared statements as the server has them."""
        words = part.words
        number = {"prepare": 1, "execute": 1, "deallocate": 2 if words[1:2] == ["prepare"] else 1}.get(words[0], 0)
        if number and len(words) > number and words[number] != "all":
            self._transactions.prepared.setdefault(b"", None)  # so that it is deallocated at the end
            return part.renamed(number, self._transactions.prefix)
        return part.text

    # -- the simple protocol ----------------------------------------------------------------------------------------

    def _simple(self, query: bytes) -> None:
        parts = split(query)
        done = True
        self._skipping = False
        self._segment.clear()
        try:
            for part in parts:
                last = part is parts[-1]
                self._branch.count(self._transactions, part)
                if part.special:
                    self._transactions.answer(part)
                else:
                    done = self._statement(query, part, hold=last, alone=len(parts) == 1)
                if not done:
                    break
            if not parts:
                self._out += message(b"I")
            done = self._transactions.end_implicit(failed=not done)
        except ToldError:
            done = False
        except RefusedError as error:
            done = False
            self._refuse(error)
            self._transactions.end_implicit(failed=True)
        if done:
            self._out += self._held
        self._held = b""
        self._ready()

    def _statement(self, query: bytes, part: Part, *, hold: bool, alone: bool) -> bool:
        self._transactions.check_block(part, alone=alone)
        self._transactions.open()
        # Errors tell a position in the text, in characters.
        before = len(query[: part.start].decode("utf-8", "replace"))
        self._backend.ask(message(b"Q", b" " * before + self._text_of(part) + b"\0"))
        self._executing.append(part)
        return self._relay(hold=hold and self._transactions.implicit, client_syncs=False, extended=False)

    def _refuse(self, error: RefusedError) -> None:
        sqlstate, words, hint = error.args
        self._out += problem(b"E", "ERROR", sqlstate, words, hint)
        if self._transactions.status == "T":
            # The server knows nothing of it, and must be in a failed transaction, too.
            self._backend.query("pgmonkey: a sandbox refused a statement")
            self._transactions.status = "E"

    # -- what the server answers ------------------------------------------------------------------------------------

    def _relay(self, *, hold: bool, client_syncs: bool, extended: bool) -> bool:
        """Pass on what the server says until it is ready; tell whether that was no error."""
        done = True
        completed: list[Part | None] = []
        while True:
            kind, body = self._backend.read()
            if kind == b"Z":
                break
            if kind == b"E":
                done, self._held = False, b""
                if _messages.fields_of(body).get("C") in _NOT_INSIDE:
                    body = _messages.with_hint(body, f"A sandbox is one transaction.  {CURE}")
            elif kind == b"3" and self._closing and not self._closing.popleft():
                continue
            elif kind in (b"C", b"I", b"s") and self._executing:
                completed.append(self._executing.popleft())
                if hold:
                    self._held = message(kind, body)
                    continue
            self._out += message(kind, body)
            if kind == b"G":
                self._copy_in(client_syncs=client_syncs, extended=extended)
            elif len(self._out) > _FLUSH:
                self._send()
        self._executing.clear()
        self._closing.clear()
        if not self._transactions.implicit:
            self._transactions.status = body.decode()
        for part in completed if done else ():
            self._transactions.note(part)
        return done

    def _copy_in(self, *, client_syncs: bool, extended: bool) -> None:
        """Pass the client's data on to the server until it ends."""
        # The server ignores the Sync that came before the data, and the client sends another one.
        end = message(b"S") if extended else b""
        try:
            self._send()
            kind = b""
            while kind not in (b"c", b"f"):
                kind, body = self._stream.read()
                if kind in (b"d", b"c", b"f"):
                    self._backend.write(message(kind, body))
            if extended and client_syncs:
                self._stream.read()
        except ClosedError:
            self._backend.write(message(b"f", text(b"the client is gone")) + end)
            raise
        self._backend.write(end)

    # -- the extended protocol --------------------------------------------------------------------------------------

    def _attempt(self, handle: Callable[[bytes], None], body: bytes) -> None:
        try:
            handle(body)
        except ToldError:
            self._skipping = True
        except RefusedError as error:
            self._skipping = True
            try:
                self._run_segment()  # what came before it is answered before it
            except ToldError:
                return
            self._refuse(error)

    def _run_segment(self, *, client_syncs: bool = False) -> None:
        """Send what is for the server, and pass on its answers; raise where they are an error."""
        if self._segment:
            segment, self._segment = self._segment + message(b"S"), bytearray()
            self._backend.ask(segment)
            if not self._relay(hold=False, client_syncs=client_syncs, extended=True):
                raise ToldError

    def _forward(self, kind: bytes, body: bytes) -> None:
        self._transactions.open()
        self._segment += message(kind, body)

    def _answer(self, data: bytes) -> None:
        """Answer here, behind what the server has still to say."""
        self._run_segment()
        self._out += data

    def _server_name(self, name: bytes) -> bytes:
        return self._transactions.prefix.encode() + name

    def _parse(self, body: bytes) -> None:
        name, position = _messages.take_text(body)
        sql, position = _messages.take_text(body, position)
        parts = split(sql)
        part = parts[0] if len(parts) == 1 else None
        if part is not None and part.special:
            self._answer(message(b"1"))
            self._transactions.prepared[name] = part
            return
        if not name:  # the server knows this one by a name, too, as the others
            self._forward(b"C", b"S" + text(self._server_name(name)))
            self._closing.append(False)
        new = sql if part is None else sql[: part.start] + self._text_of(part)
        self._forward(b"P", text(self._server_name(name), new) + body[position:])
        self._transactions.prepared[name] = part

    def _bind(self, body: bytes) -> None:
        portal, position = _messages.take_text(body)
        name, position = _messages.take_text(body, position)
        part = self._portals[portal] = self._transactions.prepared.get(name)
        if part is not None and part.special:
            self._answer(message(b"2"))
        else:
            self._forward(b"B", text(portal, self._server_name(name)) + body[position:])

    def _describe(self, body: bytes) -> None:
        kind, name = body[:1], body[1:-1]
        part = (self._transactions.prepared if kind == b"S" else self._portals).get(name)
        if part is not None and part.special:
            self._answer((message(b"t", b"\0\0") if kind == b"S" else b"") + message(b"n"))
        else:
            self._forward(b"D", kind + text(self._server_name(name) if kind == b"S" else name))

    def _execute(self, body: bytes) -> None:
        portal, _ = _messages.take_text(body)
        part = self._portals.get(portal)
        if part is not None:
            self._branch.count(self._transactions, part)
            if part.special:
                self._run_segment()
                self._transactions.answer(part)
                return
            self._transactions.check_block(part)
        self._executing.append(part)
        self._forward(b"E", body)

    def _close(self, body: bytes) -> None:
        kind, name = body[:1], body[1:-1]
        part = (self._transactions.prepared if kind == b"S" else self._portals).pop(name, None)
        if part is not None and part.special:
            self._answer(message(b"3"))
            return
        self._forward(b"C", kind + text(self._server_name(name) if kind == b"S" else name))
        self._closing.append(True)

    def _flush_message(self, body: bytes) -> None:
        self._branch.count_round_trip()
        self._run_segment()
        self._send()

    def _sync(self) -> None:
        try:
            self._run_segment(client_syncs=True)
        except ToldError:
            self._skipping = True
        self._transactions.end_implicit(failed=self._skipping)
        self._skipping = False
        self._segment.clear()
        self._ready()
