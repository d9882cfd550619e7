"""The transactions of one client of a sandbox: each is a savepoint in the sandbox's own."""

from __future__ import annotations

from . import _messages
from ._backend import LIMITS, SAVEPOINT, UNDO, identifier, literal
from ._branch import Branch, RefusedError
from ._messages import ClosedError, message, problem, text
from ._statements import Part

CURE = "Use the fixture pgmonkey_database, which gives the test a database of its own."
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


class ToldError(Exception):
    """The client was told an error already."""


class Transactions:
    """What a client has begun, set and prepared.

    Raises `RefusedError` for what a sandbox cannot do, and `ClosedError` where its connection to the server is lost.
    """

    def __init__(self, branch: Branch, number: int, base: dict[str, str]) -> None:
        self.branch = branch
        self.backend = branch.backend
        self.number = number
        self.status = "I"
        """What ReadyForQuery tells: idle, in a transaction, or in one that failed."""
        self.implicit = False
        """Whether the savepoint is that of a statement in autocommit."""
        self.running = ""
        self.cancelled = False
        self.out = bytearray()
        """What the client is to be told."""
        self.prepared: dict[bytes, Part | None] = {}
        """What the client has prepared, by name."""
        self.prefix = f"s{number}_"
        """What the names of its prepared statements begin with on the server, where all clients are one."""
        self._base = base
        self._settings = base
        self._before = (base, base)
        """The settings, of this client and of the server's session, before the transaction."""
        self._told: dict[str, str] = {}
        self._lasting: set[str] = set()
        self._local: set[str] = set()
        self._dropped: list[str] = []
        """Temporary tables that end with the transaction."""

    def start(self) -> None:
        """Tell the client the parameters that a server tells it at the beginning."""
        base, reported = self.branch.startup(self._base, self)
        self._base, self._settings, self._told = base, dict(base), dict(reported)
        for name, value in self._told.items():
            self.out += message(b"S", text(name.encode(), value.encode()))

    def leave(self) -> None:
        """Roll back what is open, and forget what was prepared."""
        try:
            if self.has_turn:
                self.backend.drain()
                self.undo()
            if self.prepared and not self.backend.lost and self.branch.turn.take_at_once(self):
                self._deallocate_all()
        except ClosedError:
            pass
        finally:
            self.branch.turn.give(self)

    def cancel(self) -> None:
        """Cancel what it does or waits for."""
        if self.has_turn:
            self.backend.cancel()
        self.branch.turn.wake(self)

    @property
    def has_turn(self) -> bool:
        """Whether it is this client that uses the connection."""
        return self.branch.turn.holder is self

    def _take_turn(self) -> None:
        self.branch.turn.take(self)
        error = self.backend.apply(self._settings)
        if error is not None:
            self.branch.turn.give(self)
            fields = _messages.fields_of(error)
            raise RefusedError(fields.get("C", "XX000"), fields.get("M", ""), "")
        self._before = dict(self._settings), dict(self.backend.applied)
        self._lasting, self._local, self._dropped = set(), set(), []

    def open(self) -> None:
        """Be in a transaction: the client's, or else that of one message."""
        if self.status == "I" and not self.implicit:
            self.begin(read_only=None)
            self.implicit, self.status = True, "I"

    def begin(self, read_only: bool | None) -> None:
        """Do what BEGIN does; *read_only* is what it says of that, None for the session's default."""
        if self.status == "I" and not self.implicit:
            self._take_turn()
            if read_only is None:
                default = self._settings.get("default_transaction_read_only", "off").lower()
                read_only = default in ("on", "true", "yes", "1")
            self.backend.query(f"SAVEPOINT {SAVEPOINT}")
        elif not self.implicit:
            self.out += problem(b"N", "WARNING", "25001", "there is already a transaction in progress")
        if read_only:
            self.backend.query("SET TRANSACTION READ ONLY")
        self.implicit, self.status = False, "T"

    def commit(self) -> bool:
        """Do what COMMIT does; tell whether it has succeeded."""
        failure = self.branch.faults.before_commit()
        if failure is not None:
            self.out += failure
            self.undo()
            return False
        reply = self.backend.query(_COMMIT)
        self.out += reply.notices
        if reply.error is not None:
            self.out += message(b"E", reply.error)
            self.undo()
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
        if LIMITS & (self._lasting | self._local):
            self.backend.lift_limits()
        lasting = sorted(self._lasting - self._local - LIMITS)
        if lasting:
            asked = ", ".join(f"pg_catalog.current_setting({literal(name)}, true)" for name in lasting)
            reply = self.backend.guarded(f"SELECT {asked}")
            found = {
                name: value for row in reply.rows for name, value in zip(lasting, row, strict=True) if value is not None
            }
            self._settings.update(found)
            self.backend.applied.update(found)
        for name in self._local - LIMITS:
            # Not what any client wants, so that the next turn sets it.
            self.backend.applied[name] = "?" if name in self._settings else ""

    def undo(self) -> None:
        """Do what ROLLBACK does."""
        self._settings, self.backend.applied = dict(self._before[0]), dict(self._before[1])
        try:
            self.backend.query(UNDO)
        finally:
            self._over()

    def _over(self) -> None:
        self.status, self.implicit = "I", False
        self.tell()
        self.branch.turn.give(self)

    def end_implicit(self, *, failed: bool) -> bool:
        """End the transaction of one message, if there is one; tell whether it has not failed."""
        if not self.implicit:
            return not failed
        if failed:
            self.undo()
            return False
        return self.commit()

    def tell(self) -> None:
        """Tell the client of parameters that have changed; those that others have set are not in force now."""
        for name, value in self.backend.parameters.items():
            if self._told.get(name) != value:
                self._told[name] = value
                self.out += message(b"S", text(name.encode(), value.encode()))

    # -- statements that a sandbox answers itself -------------------------------------------------------------------

    def answer(self, part: Part) -> None:
        """Do what a special *part* says, and answer it."""
        if self.status == "E" and part.kind not in ("commit", "rollback"):
            raise RefusedError(
                "25P02", "current transaction is aborted, commands ignored until end of transaction block", ""
            )
        if part.kind == "begin":
            self.begin(part.read_only)
            self._complete("BEGIN" if part.words[0] == "begin" else "START TRANSACTION")
        elif part.kind in ("commit", "rollback"):
            self._end_block(part)
        elif part.kind == "discard all":
            if self.status != "I":
                raise RefusedError("25001", "DISCARD ALL cannot run inside a transaction block", "")
            self._discard_all()
            self._complete("DISCARD ALL")
        elif part.kind == "deallocate all":
            self.open()
            self._deallocate_all()
            self._complete("DEALLOCATE ALL")
        elif part.kind == "set transaction":
            self.check_block(part)
            # The isolation level is the sandbox's own; transactions come one after the other there.
            if part.read_only and self.status == "T":
                self.backend.query("SET TRANSACTION READ ONLY")
            self._complete("SET")
        else:
            raise RefusedError("0A000", f"a sandbox cannot have {part.why}", CURE)

    def check_block(self, part: Part, *, alone: bool = True) -> None:
        """Refuse, or warn of, a statement outside of a transaction block that belongs into one.

        Where it is not *alone* in its message, the server takes the message for such a block, but not for a savepoint.
        """
        if self.status != "I" or not part.block or not (alone or "SAVEPOINT" in part.block):
            return
        words = f"{part.block} can only be used in transaction blocks"
        if not part.block.startswith("SET"):
            raise RefusedError("25P01", words, "")
        self.out += problem(b"N", "WARNING", "25P01", words)

    def _end_block(self, part: Part) -> None:
        commits = part.kind == "commit" and self.status != "E"
        if self.status == "I":
            self.out += problem(b"N", "WARNING", "25P01", "there is no transaction in progress")
        if self.status == "I" and not self.implicit:
            self._complete(part.kind.upper())
            return
        if commits:
            if not self.commit():
                raise ToldError
        else:
            self.undo()
        if "chain" in part.words and "no" not in part.words:
            self.begin(read_only=None)
        self._complete("COMMIT" if commits else "ROLLBACK")

    def _complete(self, tag: str) -> None:
        self.out += message(b"C", text(tag.encode()))

    def _discard_all(self) -> None:
        self.open()
        self.backend.query(_DISCARD)
        self._deallocate_all()
        self._settings, self.backend.applied = dict(self._base), {}
        self._lasting, self._local = set(), set()
        self.backend.lift_limits()
        self.backend.apply(self._settings)
        self.commit()

    def _deallocate_all(self) -> None:
        prepared = self.backend.query("SELECT name FROM pg_catalog.pg_prepared_statements")
        names = [str(row[0]) for row in prepared.rows if str(row[0]).startswith(self.prefix)]
        if names:
            self.backend.guarded("; ".join(f"DEALLOCATE {identifier(name)}" for name in names))
        self.prepared.clear()

    def note(self, part: Part | None) -> None:
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
        self.backend.lift_limits()
        self.backend.apply(self._settings)
