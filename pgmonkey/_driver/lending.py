"""Lend a pooled connection so that it can be taken back for certain.

A borrower gets a connection object of its own over the pooled libpq connection: a real `psycopg.Connection` with its
own handlers, row factory and isolation level.  Taking it back removes the libpq connection from that object, so that a
reference or a cursor that was kept raises an error and never runs in another borrower's transaction.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import BaseConnection
from psycopg.abc import AdaptContext, PQGen, PQGenConn
from psycopg.adapt import AdaptersMap
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from ..errors import GivenBackError, PgmonkeyError
from .compat import FAST_PATH, LENDING_ERROR
from .deadlines import connecting_until, limited_connecting
from .prepared import Prepared
from .psycopg_types import AnyConnection
from .wire import check_answered, check_commit

if TYPE_CHECKING:
    from typing_extensions import Self

    _Base = AnyConnection
else:
    _Base = object

C = TypeVar("C", bound="AnyConnection")

# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _INTRANS = int(TransactionStatus.IDLE), int(TransactionStatus.INTRANS)
_TAKEN_BACK = ("pgconn", "lock", "watcher", "pooled")


class LendableConnection(_Base):
    """What a pooled connection, and each connection lent over it, does differently from psycopg's own."""

    # psycopg looks for this attribute to tell that the end of ``with conn:`` must not close the connection.
    _pool: Any = True

    @classmethod
    def _connect_gen(cls, *arguments: Any, **options: Any) -> PQGenConn[Self]:
        connecting: PQGenConn[Self] = super()._connect_gen(*arguments, **options)
        deadline = connecting_until.get()
        return connecting if deadline is None else limited_connecting(connecting, deadline)

    def _start_query(self) -> PQGen[None]:
        """Begin a transaction as psycopg does, in one message with what is to be set for it.

        These are settings that no session keeps (PgBouncer), session values, and the name of a trace.
        """
        state = self.__dict__
        settings = [state[name] for name in ("transaction_settings", "session_values") if state.get(name)]
        if "trace" in state and (command := state["trace"]()) is not None:
            settings.append(command)
        if not settings or self._autocommit or self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield from super()._start_query()
        elif self.pgconn.pipeline_status != PipelineStatus.OFF:
            yield from super()._start_query()
            for setting in settings:
                yield from self._exec_command(setting)
        else:
            self.pgconn.send_query(b"; ".join((self._get_tx_start_command(), *settings)))
            for result in (yield from execute(self.pgconn)):
                if result.status == ExecStatus.FATAL_ERROR:
                    raise error_from_result(result)

    def _exec_command(self, command: Any, *args: Any, **options: Any) -> PQGen[PGresult | None]:
        """Do as psycopg; tell when the answer to a COMMIT was lost."""
        commits = command == b"COMMIT" and self.pgconn.status == ConnStatus.OK
        try:
            result: PGresult | None = yield from super()._exec_command(command, *args, **options)
        except psycopg.Error as error:
            if commits:
                check_answered(error)
            raise
        except IndexError:  # psycopg takes the last of no results
            if commits:
                check_commit([], self)
            raise
        if commits and result is not None:  # None: in a pipeline
            check_commit([result], self)
        if command in (b"COMMIT", b"ROLLBACK") and "loan" in self.__dict__:
            self.__dict__["loan"].end(command.decode().lower())
        return result

    def starting(self) -> PQGen[None]:
        """Return the generator that begins a transaction where none is open."""
        return self._start_query()

    def setting(self, command: bytes) -> PQGen[None]:
        """Set session values by *command* until the end of the transaction."""
        yield from self._exec_command(command)

    @property
    def depth(self) -> int:
        """How many of psycopg's transaction blocks are open."""
        count: int = getattr(self, "_num_transactions", 0)
        return count

    def set_depth(self, depth: int) -> None:
        """Let psycopg forget the blocks after the first *depth*."""
        self._num_transactions = depth

    def has_handlers(self) -> bool:
        """Tell whether a function of the borrower is called for notices or notifications."""
        return bool(self._notice_handlers or self._notify_handlers)

    def in_pipeline(self) -> bool:
        """Tell whether a ``pipeline()`` of the borrower is open.

        What libpq says may be the message of another thread, in which BEGIN travels with the first statement.
        """
        return self._pipeline is not None if FAST_PATH else self.pgconn.pipeline_status != PipelineStatus.OFF

    def set_idle_autocommit(self, value: bool) -> bool:
        """Set autocommit where that needs no statement; tell whether it did not."""
        if not FAST_PATH or self.pgconn.transaction_status != _IDLE or self._pipeline is not None:
            return False
        self._autocommit = bool(value)
        return True

    def can_commit_directly(self) -> bool:
        """Tell whether a plain COMMIT is all that psycopg's ``commit()`` would do."""
        return (
            FAST_PATH
            and self.pgconn.transaction_status == _INTRANS
            and self._pipeline is None
            and not self._num_transactions
            and not self._tpc
        )

    def mark_closed(self) -> None:
        """Have psycopg know that ``close()`` was called."""
        self._closed = True

    when_taken_back: type[AnyConnection]
    """What the class of a lent connection becomes when it is given back."""

    def __del__(self, *_: object) -> None:
        """Do not warn, as psycopg does, that the connection was not closed: the pool closes what it owns."""


class _TakenBack:
    """Becomes the class of a connection that was given back.  A class of its own: a check would slow down each use."""

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or was given back."""
        return True

    def __getattr__(self, name: str) -> object:
        if name in _TAKEN_BACK:
            # A cancelled unit of work gives its connection back, perhaps between two steps of a statement.
            raise self.__dict__.get("refusal", GivenBackError)()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} [GIVEN BACK] at 0x{id(self):x}>"


@lru_cache
def _left_open(pipeline_class: type) -> type:
    """Return what becomes the class of a pipeline whose connection was given back, by which psycopg's names it."""
    names = {"__module__": pipeline_class.__module__, "__repr__": _TakenBack.__repr__}
    return type(pipeline_class.__name__, (pipeline_class,), names)


def lendable(connection_class: type[C], guard: type) -> type[C]:
    """Return the subclass of *connection_class* that a pool connects with and lends; *guard* is mixed in.

    Raises `PgmonkeyError` where the installed psycopg lacks what lending needs.
    """
    if LENDING_ERROR is not None:
        raise PgmonkeyError(LENDING_ERROR)
    return cast("type[C]", _lendable(connection_class, guard))  # type: ignore[arg-type]  # classes are hashable


@lru_cache
def _lendable(connection_class: type, guard: type) -> type:
    name, module = connection_class.__name__, {"__module__": connection_class.__module__}
    lent: Any = type(name, (LendableConnection, guard, connection_class), module)
    lent.when_taken_back = type(name, (_TakenBack, lent), module)
    made: type = lent
    return made


def lend(pooled: C, *, autocommit: bool, context: AdaptContext | None = None) -> C:
    """Return a connection for one borrower over the libpq connection of *pooled*.

    *context* is where its type adapters come from, *pooled* itself when None.
    """
    lent = object.__new__(pooled.__class__)
    state: dict[str, Any] = pooled.__dict__.copy()
    state["_autocommit"] = autocommit
    state["_notice_handlers"] = list(state["_notice_handlers"])
    state["_notify_handlers"] = list(state["_notify_handlers"])
    state["_notifies_backlog"] = deque()
    adapters = state["_adapters"] if context is None else context.adapters
    if adapters:
        state["_adapters"] = AdaptersMap(adapters)
    lent.__dict__ = state
    prepared: Prepared = state["_prepared"]
    prepared.drop_settings()
    return lent


def route_notices(lent: AnyConnection) -> None:
    """Let *lent* have the notices and notifications that come on its libpq connection."""
    # psycopg hands them to the object that the libpq connection names here.
    reference = weakref.ref(lent)
    lent.pgconn.notice_handler = partial(BaseConnection._notice_handler, reference)
    lent.pgconn.notify_handler = partial(BaseConnection._notify_handler, reference)


def begun(lent: AnyConnection) -> str:
    """Tell what was begun on *lent* and has not ended, for which psycopg's ``commit()`` would raise."""
    if getattr(lent, "_tpc", None):
        return "tpc_begin() without tpc_prepare() or tpc_commit()"
    return "a transaction() block on this connection has not ended" if cast("LendableConnection", lent).depth else ""


def take_back(lent: Any) -> None:
    """Make *lent*, and every cursor made from it, unusable."""
    state = lent.__dict__
    lent.__class__ = lent.when_taken_back
    pgconn = state.pop("pgconn", None)
    if pgconn is not None:
        pgconn.notice_handler = pgconn.notify_handler = None  # what comes next is not for it
    for name in _TAKEN_BACK[1:]:
        state.pop(name, None)
    pipeline = state.get("_pipeline")
    if pipeline is not None:  # still open; psycopg logs that it cannot end it, and forgets it under the lock
        pipeline.__class__ = _left_open(pipeline.__class__)
        state["lock"] = nullcontext()


def prepare_to_lend(connection: AnyConnection) -> bytes:
    """Have psycopg build BEGIN now, which all lent connections copy, and return it.

    From now on the pooled connection itself is in autocommit.  With a psycopg that keeps this elsewhere, a lent
    connection would be, too, and what is rolled back would be stored.  Raises `PgmonkeyError` then.
    """
    connection._autocommit = True
    begin = connection._get_tx_start_command()
    if not connection.autocommit or lend(connection, autocommit=False).autocommit:
        begin = b""
    if not begin:
        raise PgmonkeyError(
            f"psycopg {psycopg.__version__} begins transactions in a way that this pgmonkey does not know"
        )
    return begin
