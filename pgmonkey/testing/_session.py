"""One client of a sandbox: to it, this is a server; its transactions are savepoints in the sandbox's own."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from . import _messages
from ._backend import SAVEPOINT, UNDO, identifier, literal
from ._branch import Branch, RefusedError
from ._messages import ClosedError, Stream, message, problem, text
from ._statements import Part, split

_CURE = "Use the fixture pgmonkey_database, which gives the test a database of its own."
# Errors of statements that cannot be part of a transaction.
_NOT_INSIDE = ("25001", "2D000")
# What the server does at a COMMIT: deferred constraints are checked and then as they were declared, cursors are closed.
_CHECK = """
    SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;
    SELECT (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I', nspname, conname), ', ')
            FROM pg_catalog.pg_constraint JOIN pg_catalog.pg_namespace n ON n.oid = connamespace
            WHERE condeferrable AND NOT condeferred),
           (SELECT pg_catalog.string_agg(pg_catalog.format('CLOSE %I', name), '; ')
            FROM pg_catalog.pg_cursors WHERE NOT is_holdable AND name <> '')
"""
_COMMIT = f"{_CHECK}; RELEASE SAVEPOINT {SAVEPOINT}"
# All of DISCARD ALL but what is done for one client alone.
_DISCARD = """
    CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *; DISCARD PLANS; DISCARD TEMP;
    DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all()
"""
_FLUSH = 65536


class Session:
    """Serves one client, in a thread of its own, until it leaves."""

    def __init__(self, branch: Branch, stream: Stream, number: int, base: dict[str, str]) -> None:
        self.branch = branch
        self.backend = branch.backend
        self.stream = stream
        self.number = number
        self.status = "I"
        """What ReadyForQuery tells: idle, in a transaction, or in one that failed."""
        self.running = ""
        self.cancelled = False
        self._implicit = False
        """Whether the savepoint is that of a statement in autocommit."""
        self._out = bytearray()
        self._held = b""
        """The CommandComplete that is not true before the COMMIT that belongs to it."""
        self._base = base
        self._settings = base
        self._before = (base, base)
        """The settings, of this client and of the server's session, before the transaction."""
        self._told: dict[str, str] = {}
        self._lasting: set[str] = set()
        self._local: set[str] = set()
        self._dropped: list[str] = []
        """Temporary tables that end with the transaction."""
        # -- the extended protocol
        self._statements: dict[bytes, Part | None] = {}
        self._portals: dict[bytes, Part | None] = {}
        self._segment = bytearray()
        """What is for the server and not sent yet."""
        self._skipping = False
        """Whether all is ignored until the next Sync."""
        self._executing: deque[Part | None] = deque()
        self._closing: deque[bool] = deque()
        """For each Close that was sent, whether the client sent it."""

    @property
    def _prefix(self) -> str:
        return f"s{self.number}_"

    def start(self, secret: int) -> None:
        """Tell the client all that a server tells it at the beginning."""
        base, reported = self.branch.startup(self._base, self)
        self._base, self._settings, self._told = base, dict(base), dict(reported)
        for name, value in self._told.items():
            self._out += message(b"S", text(name.encode(), value.encode()))
        self._out += message(b"K", struct.pack("!II", self.backend.pid, secret))
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
            kind, body = self.stream.read()
            self.branch.faults.before_message()
            if kind == b"X":
                return
            if kind == b"Q":
                self.branch.count_round_trip(self)
                self._simple(body[:-1])
            elif kind == b"S":
                self.branch.count_round_trip(self)
                self._sync()
            elif kind in extended:
                if not self._skipping:
                    self._attempt(extended[kind], body)
            elif kind not in b"dcf":  # the rest of a COPY that failed
                raise ClosedError

    def leave(self) -> None:
        """Roll back what is open, and forget what was prepared."""
        try:
            if self.branch.turn.holder is self:
                self.backend.drain()
                self._undo()
            if self._statements and not self.backend.lost and self.branch.turn.take_at_once(self):
                self._deallocate_all()
        except ClosedError:
            pass
        finally:
            self.branch.turn.give(self)

    # -- transactions -----------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        self.branch.turn.take(self)
        error = self.backend.apply(self._settings)
        if error is not None:
            self.branch.turn.give(self)
            fields = _messages.fields_of(error)
            raise RefusedError(fields.get("C", "XX000"), fields.get("M", ""), "")
        self._before = dict(self._settings), dict(self.backend.applied)
        self._lasting, self._local, self._dropped = set(), set(), []

    def _open(self) -> None:
        """Be in a transaction: the client's, or else that of one message."""
        if self.status == "I" and not self._implicit:
            self._begin(read_only=None)
            self._implicit, self.status = True, "I"

    def _begin(self, read_only: bool | None) -> None:
        if self.status == "I" and not self._implicit:
            self._take_turn()
            if read_only is None:
                default = self._settings.get("default_transaction_read_only", "off").lower()
                read_only = default in ("on", "true", "yes", "1")
            self.backend.query(f"SAVEPOINT {SAVEPOINT}")
        elif not self._implicit:
            self._out += problem(b"N", "WARNING", "25001", "there is already a transaction in progress")
        if read_only:
            self.backend.query("SET TRANSACTION READ ONLY")
        self._implicit, self.status = False, "T"

    def _commit(self) -> bool:
        """Do what COMMIT does; tell whether it has succeeded."""
        failure = self.branch.faults.before_commit()
        if failure is not None:
            self._out += failure
            self._undo()
            return False
        reply = self.backend.query(_COMMIT)
        self._out += reply.notices
        if reply.error is not None:
            self._out += message(b"E", reply.error)
            self._undo()
            return False
        immediate, closes = reply.rows[0]
        more = [closes] if closes else []
        if immediate:
            more.append(f"SET CONSTRAINTS {immediate} IMMEDIATE")
        more += [f"DROP TABLE IF EXISTS {name}" for name in self._dropped]
        if more:
            self.backend.guarded("; ".join(more))
        self._settle()
        self._over()
        return True

    def _settle(self) -> None:
        """Keep what was set for the session, and set back what was set for the transaction."""
        lasting = sorted(self._lasting - self._local)
        if lasting:
            asked = ", ".join(f"pg_catalog.current_setting({literal(name)}, true)" for name in lasting)
            reply = self.backend.guarded(f"SELECT {asked}")
            found = {
                name: value for row in reply.rows for name, value in zip(lasting, row, strict=True) if value is not None
            }
            self._settings.update(found)
            self.backend.applied.update(found)
        for name in self._local:
            # Not what any client wants, so that the next turn sets it.
            self.backend.applied[name] = "?" if name in self._settings else ""

    def _undo(self) -> None:
        """Do what ROLLBACK does."""
        self._settings, self.backend.applied = dict(self._before[0]), dict(self._before[1])
        try:
            self.backend.query(UNDO)
        finally:
            self._over()

    def _over(self) -> None:
        self.status, self._implicit = "I", False
        self._tell()
        self.branch.turn.give(self)

    def _end_implicit(self, *, failed: bool) -> bool:
        """End the transaction of one message, if there is one; tell whether it has not failed."""
        if not self._implicit:
            return not failed
        if failed:
            self._undo()
            return False
        return self._commit()

    def _tell(self) -> None:
        """Tell the client of parameters that have changed; those that others have set are not in force now."""
        for name, value in self.backend.parameters.items():
            if self._told.get(name) != value:
                self._told[name] = value
                self._out += message(b"S", text(name.encode(), value.encode()))

    def _ready(self) -> None:
        if self.branch.turn.holder is self:
            self._tell()
        self._out += message(b"Z", self.status.encode())
        self._send()

    def _send(self) -> None:
        out, self._out = self._out, bytearray()
        self.stream.write(out)

    # -- statements that a sandbox answers itself -------------------------------------------------------------------

    def _special(self, part: Part) -> None:
        """Do what *part* says and answer it; raise `RefusedError` where that cannot be."""
        if self.status == "E" and part.kind not in ("commit", "rollback"):
            raise RefusedError(
                "25P02", "current transaction is aborted, commands ignored until end of transaction block", ""
            )
        if part.kind == "begin":
            self._begin(part.read_only)
            self._complete("BEGIN" if part.words[0] == "begin" else "START TRANSACTION")
        elif part.kind in ("commit", "rollback"):
            self._end_block(part)
        elif part.kind == "discard all":
            if self.status != "I":
                raise RefusedError("25001", "DISCARD ALL cannot run inside a transaction block", "")
            self._discard_all()
            self._complete("DISCARD ALL")
        elif part.kind == "in block":
            if self.status == "I":
                raise RefusedError("25P01", f"{part.why} can only be used in transaction blocks", "")
            # SET TRANSACTION: the isolation level is the sandbox's own; transactions come one after the other there.
            if part.read_only:
                self.backend.query("SET TRANSACTION READ ONLY")
            self._complete("SET")
        else:
            raise RefusedError("0A000", f"a sandbox cannot have {part.why}", _CURE)

    def _end_block(self, part: Part) -> None:
        commits = part.kind == "commit" and self.status != "E"
        if self.status == "I":
            self._out += problem(b"N", "WARNING", "25P01", "there is no transaction in progress")
        if self.status == "I" and not self._implicit:
            self._complete(part.kind.upper())
            return
        if commits:
            if not self._commit():
                raise _ToldError
        else:
            self._undo()
        if "chain" in part.words and "no" not in part.words:
            self._begin(read_only=None)
        self._complete("COMMIT" if commits else "ROLLBACK")

    def _complete(self, tag: str) -> None:
        self._out += message(b"C", text(tag.encode()))

    def _discard_all(self) -> None:
        self._open()
        self.backend.query(_DISCARD)
        self._deallocate_all()
        self._settings, self.backend.applied = dict(self._base), {}
        self._lasting, self._local = set(), set()
        self.backend.apply(self._settings)
        self._commit()

    def _deallocate_all(self) -> None:
        prepared = self.backend.query("SELECT name FROM pg_catalog.pg_prepared_statements")
        names = [str(row[0]) for row in prepared.rows if str(row[0]).startswith(self._prefix)]
        if names:
            self.backend.guarded("; ".join(f"DEALLOCATE {identifier(name)}" for name in names))
        self._statements.clear()

    def _note(self, part: Part | None) -> None:
        """Note what a statement that was executed has changed in the session."""
        if part is None:
            return
        self._lasting.update(part.lasting)
        self._local.update(part.local)
        if part.resets:
            self._set_back(part)
        words = part.words
        if words[:1] == ["create"] and {"temp", "temporary"} & set(words[1:3]) and b"DROP" in part.text.upper():
            self._note_temporary(part)

    def _note_temporary(self, part: Part) -> None:
        squeezed = b" ".join(part.text.upper().split())
        if b"ON COMMIT DROP" in squeezed and "table" in part.words:
            at = part.words.index("table") + 1
            at += 3 if part.words[at : at + 3] == ["if", "not", "exists"] else 0
            start, end = part.spans[at]
            self._dropped.append("pg_temp." + part.text[start:end].decode("utf-8", "replace"))

    def _set_back(self, part: Part) -> None:
        """Set back to what the client began with, which RESET knows nothing of."""
        words = part.words[1:]
        names = {"all": [name for name in self.backend.applied if name not in ("role", "session_authorization")]}
        names |= {"session": ["session_authorization"], "time": ["timezone"]}
        for name in names.get(words[0] if words else "", ["".join(words[:3])]):
            self.backend.applied.pop(name, None)
            self._settings.pop(name, None)
            if name in self._base:
                self._settings[name] = self._base[name]
            self._lasting.discard(name)
            self._local.discard(name)
        self.backend.apply(self._settings)

    def _text_of(self, part: Part) -> bytes:
        """Return the text of a statement, with the names of prepared statements as the server has them."""
        words = part.words
        number = {"prepare": 1, "execute": 1, "deallocate": 2 if words[1:2] == ["prepare"] else 1}.get(words[0], 0)
        if number and len(words) > number and words[number] != "all":
            self._statements.setdefault(b"", None)  # so that it is deallocated at the end
            return part.renamed(number, self._prefix)
        return part.text

    @staticmethod
    def _is_special(part: Part) -> bool:
        return part.kind not in ("plain", "in block") or (part.kind == "in block" and part.why == "SET")

    def _is_deallocate_all(self, part: Part) -> bool:
        return part.words[:1] == ["deallocate"] and part.words[-1:] == ["all"]

    # -- the simple protocol ----------------------------------------------------------------------------------------

    def _simple(self, query: bytes) -> None:
        parts = split(query)
        done = True
        self._skipping = False
        self._segment.clear()
        try:
            for part in parts:
                last = part is parts[-1]
                self.branch.count(self, part)
                if self._is_special(part):
                    self._special(part)
                elif self._is_deallocate_all(part):
                    self._open()
                    self._deallocate_all()
                    self._complete("DEALLOCATE ALL")
                else:
                    done = self._statement(query, part, hold=last)
                if not done:
                    break
            if not parts:
                self._out += message(b"I")
            done = self._end_implicit(failed=not done)
        except _ToldError:
            done = False
        except RefusedError as error:
            done = False
            self._refuse(error)
            self._end_implicit(failed=True)
        if done:
            self._out += self._held
        self._held = b""
        self._ready()

    def _statement(self, query: bytes, part: Part, *, hold: bool) -> bool:
        if part.kind == "in block" and self.status == "I":
            raise RefusedError("25P01", f"{part.why} can only be used in transaction blocks", "")
        self._open()
        # Errors tell a position in the text, in characters.
        before = len(query[: part.start].decode("utf-8", "replace"))
        self.backend.ask(message(b"Q", b" " * before + self._text_of(part) + b"\0"))
        self._executing.append(part)
        return self._relay(hold=hold and self._implicit, client_syncs=False, extended=False)

    def _refuse(self, error: RefusedError) -> None:
        sqlstate, words, hint = error.args
        self._out += problem(b"E", "ERROR", sqlstate, words, hint)
        if self.status == "T":
            # The server knows nothing of it, and must be in a failed transaction, too.
            self.backend.query("pgmonkey: a sandbox refused a statement")
            self.status = "E"

    # -- what the server answers ------------------------------------------------------------------------------------

    def _relay(self, *, hold: bool, client_syncs: bool, extended: bool) -> bool:
        """Pass on what the server says until it is ready; tell whether that was no error."""
        done = True
        completed: list[Part | None] = []
        while True:
            kind, body = self.backend.read()
            if kind == b"Z":
                break
            if kind == b"E":
                done, self._held = False, b""
                if _messages.fields_of(body).get("C") in _NOT_INSIDE:
                    body = _messages.with_hint(body, f"A sandbox is one transaction.  {_CURE}")
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
        if not self._implicit:
            self.status = body.decode()
        for part in completed if done else ():
            self._note(part)
        return done

    def _copy_in(self, *, client_syncs: bool, extended: bool) -> None:
        """Pass the client's data on to the server until it ends."""
        # The server ignores the Sync that came before the data, and the client sends another one.
        end = message(b"S") if extended else b""
        try:
            self._send()
            kind = b""
            while kind not in (b"c", b"f"):
                kind, body = self.stream.read()
                if kind in (b"d", b"c", b"f"):
                    self.backend.write(message(kind, body))
            if extended and client_syncs:
                self.stream.read()
        except ClosedError:
            self.backend.write(message(b"f", text(b"the client is gone")) + end)
            raise
        self.backend.write(end)

    # -- the extended protocol --------------------------------------------------------------------------------------

    def _attempt(self, handle: Callable[[bytes], None], body: bytes) -> None:
        try:
            handle(body)
        except _ToldError:
            self._skipping = True
        except RefusedError as error:
            self._skipping = True
            try:
                self._run_segment()  # what came before it is answered before it
            except _ToldError:
                return
            self._refuse(error)

    def _run_segment(self, *, client_syncs: bool = False) -> None:
        """Send what is for the server, and pass on its answers; raise where they are an error."""
        if self._segment:
            segment, self._segment = self._segment + message(b"S"), bytearray()
            self.backend.ask(segment)
            if not self._relay(hold=False, client_syncs=client_syncs, extended=True):
                raise _ToldError

    def _forward(self, kind: bytes, body: bytes) -> None:
        self._open()
        self._segment += message(kind, body)

    def _answer(self, data: bytes) -> None:
        """Answer here, behind what the server has still to say."""
        self._run_segment()
        self._out += data

    def _server_name(self, name: bytes) -> bytes:
        return self._prefix.encode() + name

    def _parse(self, body: bytes) -> None:
        name, position = _messages.take_text(body)
        sql, position = _messages.take_text(body, position)
        parts = split(sql)
        part = parts[0] if len(parts) == 1 else None
        if part is not None and (self._is_special(part) or self._is_deallocate_all(part)):
            self._answer(message(b"1"))
            self._statements[name] = part
            return
        if not name:  # the server knows this one by a name, too, as the others
            self._forward(b"C", b"S" + text(self._server_name(name)))
            self._closing.append(False)
        new = sql if part is None else sql[: part.start] + self._text_of(part)
        self._forward(b"P", text(self._server_name(name), new) + body[position:])
        self._statements[name] = part

    def _bind(self, body: bytes) -> None:
        portal, position = _messages.take_text(body)
        name, position = _messages.take_text(body, position)
        part = self._portals[portal] = self._statements.get(name)
        if part is not None and (self._is_special(part) or self._is_deallocate_all(part)):
            self._answer(message(b"2"))
        else:
            self._forward(b"B", text(portal, self._server_name(name)) + body[position:])

    def _describe(self, body: bytes) -> None:
        kind, name = body[:1], body[1:-1]
        part = (self._statements if kind == b"S" else self._portals).get(name)
        if part is not None and (self._is_special(part) or self._is_deallocate_all(part)):
            self._answer((message(b"t", b"\0\0") if kind == b"S" else b"") + message(b"n"))
        else:
            self._forward(b"D", kind + text(self._server_name(name) if kind == b"S" else name))

    def _execute(self, body: bytes) -> None:
        portal, _ = _messages.take_text(body)
        part = self._portals.get(portal)
        if part is not None:
            self.branch.count(self, part)
            if self._is_special(part):
                self._run_segment()
                self._special(part)
                return
            if self._is_deallocate_all(part):
                self._run_segment()
                self._open()
                self._deallocate_all()
                self._complete("DEALLOCATE ALL")
                return
            if part.kind == "in block" and self.status == "I":
                raise RefusedError("25P01", f"{part.why} can only be used in transaction blocks", "")
        self._executing.append(part)
        self._forward(b"E", body)

    def _close(self, body: bytes) -> None:
        kind, name = body[:1], body[1:-1]
        part = (self._statements if kind == b"S" else self._portals).pop(name, None)
        if part is not None and self._is_special(part):
            self._answer(message(b"3"))
            return
        self._forward(b"C", kind + text(self._server_name(name) if kind == b"S" else name))
        self._closing.append(True)

    def _flush_message(self, body: bytes) -> None:
        self.branch.count_round_trip(self)
        self._run_segment()
        self._send()

    def _sync(self) -> None:
        try:
            self._run_segment(client_syncs=True)
        except _ToldError:
            self._skipping = True
        self._end_implicit(failed=self._skipping)
        self._skipping = False
        self._segment.clear()
        self._ready()


class _ToldError(Exception):
    """The client was told an error already."""
