# Generated from pgmonkey/_async/handle.py by tools/twins.py: change that file, then run the tool.

"""The handle that `get_database_connection` returns: ``with handle as conn`` lends a connection."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from time import monotonic, perf_counter
from types import FrameType, TracebackType
from typing import Any, TypeAlias, cast
from weakref import WeakMethod, ref

import psycopg
from psycopg.abc import AdaptContext
from psycopg.errors import ConnectionTimeout
from psycopg.pq.abc import PGconn

from .._config.blueprint import blueprint
from .._config.schema import Config, Kind
from .._driver.deadlines import Deadline, check_wait
from .._driver.psycopg_types import RowFactory
from .._pool import detour
from .._pool.cache import Holder, Key, cache
from .._pool.open_blocks import Exit, OpenBlocks, Runner, by_frame, current_exit, current_runner
from .._pool.place import Label
from .._telemetry.marks import query_tag, trace_command
from ..errors import PgmonkeyError, PoolTimeoutError, ServerUnavailableError
from .fastpath import FastPath
from .lease import Lease
from .listener import Listener
from .pool import Pool
from .psycopg_types import AnyConnection
from .waiting import current_loop, is_over, loop_id, sleep

logger = logging.getLogger("pgmonkey")

# What type checkers infer for an async function, and ExitStack's annotations ask for.
_Entering: TypeAlias = "AnyConnection"
_Exiting: TypeAlias = "None"

# Seconds between the attempts to open a pool, doubled each time up to the second.
_PAUSE = (0.1, 2.0)


class ConnectionHandle:
    """A database, as one connection or as a pool of them.

    ``with handle as conn`` lends a psycopg connection for the block: committed when the block ends, rolled back
    when it raises, given back in any case.  Blocks of a pool may be nested and run side by side, each on a connection
    of its own.  Blocks of a single connection wait for each other; one inside another is a savepoint of it.
    """

    def __init__(self, config: Config, kind: Kind) -> None:
        self.kind: Kind = kind
        """The kind that was requested from `get_database_connection`: one of four."""
        self._blueprint = blueprint(config, kind)
        self._pool = Pool(self._blueprint)
        self._opening: deque[None] = deque()
        """One item for each caller that connects now.  A counter would need a lock, which a fork could leave locked."""
        self._open_blocks: OpenBlocks[Lease | _Nested] = OpenBlocks()
        self._pool.scavenge = WeakMethod(self._take_back_forgotten)

    @property
    def listener(self) -> Listener:
        """The connection on which the process listens for notifications; none of the pool."""
        pool = self._in_force
        made = Listener(pool.connector, pool.name, self._blueprint.settings.timeout)
        listener: Listener = made if pool is not self._pool else self.__dict__.setdefault("_listener", made)
        return listener

    @property
    def _in_force(self) -> Pool:
        """The pool, or the one that tests have in its place."""
        return self._pool if (find := detour.find) is None else find(self._pool)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._blueprint.name!r} {state}>"

    def open(self, timeout: float | None = None) -> None:
        """Connect now instead of at the first borrow; raise `ServerUnavailableError` if that fails.

        It retries for ``open_timeout`` seconds; with a *timeout*, in seconds, it tries once.
        """
        settings, pool = self._blueprint.settings, self._in_force
        if pool.opened or settings.open is False:
            return  # a pool that was open once heals by itself
        give_up = monotonic() + (settings.open_timeout if timeout is None else 0.0)
        pause, longest = _PAUSE
        self._opening.append(None)
        try:
            while not pool.opened:
                try:
                    pool.open(timeout)
                except psycopg.OperationalError as error:
                    # A pool that is exhausted or closed: trying again does not help.
                    own = isinstance(error, PgmonkeyError) and not isinstance(error, ServerUnavailableError)
                    if own or monotonic() + pause >= give_up:
                        raise
                    logger.warning("%s: cannot connect, trying again: %s", pool.name, error)
                    sleep(pause)
                    pause = min(2 * pause, longest)
        finally:
            self._opening.pop()

    def borrow(
        self,
        *,
        timeout: float | None = None,
        autocommit: bool | None = None,
        context: AdaptContext | None = None,
        label: Label | None = None,
        deadline: Deadline | None = None,
        framework: str | None = None,
    ) -> Lease:
        """Lend a connection until the lease is finished, which is up to the caller.

        *timeout* is in seconds and defaults to the pool's; *autocommit* defaults to the configuration's; *context* is
        where the connection's type adapters come from, psycopg's own by default; *label* tells, when it is called,
        for whom the connection is borrowed, and *framework* by what, for `query_tags`.  By the *deadline* of a request
        all must have ended, the wait as well: `DeadlineExceededError` is raised then.
        """
        if deadline is not None:
            timeout = deadline.wait(self._blueprint.settings.timeout if timeout is None else timeout)
        pool = self._pool if (find := detour.find) is None else find(self._pool)  # without a call
        asked = 0.0 if pool.observer is None else perf_counter()
        try:
            pooled = pool.borrow(timeout, label)
        except (PoolTimeoutError, ConnectionTimeout) as error:
            check_wait(error, deadline)
            raise
        autocommit = pooled.autocommit if autocommit is None else autocommit
        lease = Lease(pool, pooled, autocommit, context)
        if pool.observer is not None:
            lease.observe(pool.observer, asked, label)
        telemetry = self._blueprint.telemetry
        if telemetry.query_tags:
            lease.tag = query_tag(telemetry.application, framework, label)
        if telemetry.trace_to_server:
            lease.show_trace(trace_command)
        if deadline is not None:
            lease.limit(deadline)
        return lease

    @contextmanager
    def connection(self, *, timeout: float | None = None, autocommit: bool | None = None) -> Iterator[AnyConnection]:
        """Lend a connection for a block, as ``with handle`` does, with the options of `borrow`."""
        lease = self.borrow(timeout=timeout, autocommit=autocommit)
        try:
            yield lease.connection
        except BaseException as error:
            lease.finish(error)
            raise
        lease.finish()

    def ping(self, timeout: float) -> None:
        """Run ``SELECT 1``; raise psycopg's error, at the latest after *timeout* seconds."""
        self._in_force.ping(timeout)

    @by_frame
    def __enter__(self, frame: FrameType) -> _Entering:
        # Not an async function: a task that only waits for the connection must not be taken for the block's.
        entering: _Entering = cast(Any, self._enter(frame, current_runner(), current_exit(frame)))
        return entering

    @by_frame
    def __exit__(
        self,
        frame: FrameType,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> _Exiting:
        entry = self._open_blocks.pop(frame)
        if entry is None:
            self._take_back_forgotten()
            raise RuntimeError(
                f"{self._pool.name}: cannot tell which 'with' block ends here: it was not entered by this function, "
                "nor by the same object in this thread or task; use 'with pool.connection() as conn' there"
            )
        exiting: _Exiting = cast(Any, entry.finish(exc))
        return exiting

    def _enter(self, frame: FrameType, runner: Runner, exit_: Exit | None) -> AnyConnection:
        # A single connection cannot be lent twice, so a block inside its block is a savepoint.
        outer = self._outer() if self._blueprint.single else None
        entry = self.borrow() if outer is None else _Nested.begin(outer)
        if isinstance(entry, Lease) and self._blueprint.single:
            _blocks.set((*(ref(lease) for lease in _leases()), ref(entry)))
        self._open_blocks.push(frame, runner, exit_, entry)
        return entry.connection

    def _outer(self) -> Lease | None:
        pool = self._in_force
        return next((lease for lease in _leases() if lease.pool is pool), None)

    def _take_back_forgotten(self) -> None:
        """Take back what was entered by hand in a thread or task that has ended, when nothing refers to it any more."""
        for lease in self._open_blocks.remove_forgotten(_is_unused):
            if isinstance(lease, Lease):
                logger.warning("%s: reclaiming a connection that was never given back: %s", self._pool.name, str(lease))
                lease.abandon()

    def close(self) -> None:
        """Close idle connections now, and lent ones when they are given back."""
        self._stop_listening()
        self._pool.close(f"{self.kind} connection closed; ask get_database_connection() again")

    def _stop_listening(self) -> None:
        if "_listener" in self.__dict__:
            self.listener.close()

    def leave(self) -> None:
        """Close what is idle, at the end of the process."""
        self._stop_listening()
        self._pool.leave()

    def at_work(self) -> dict[PGconn, object]:
        """Return the connections that execute a statement, each with what tells that statement from others."""
        return self._pool.at_work()

    def terminate(self) -> None:
        """Close everything now."""
        self._stop_listening()
        self._pool.terminate()

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return bool(self._pool.close_reason)

    @property
    def unused(self) -> bool:
        """Whether no connection was ever made, and none is being made."""
        return not self._pool.opened and not self._opening

    @property
    def usable_here(self) -> bool:
        """Whether the handle is open and belongs to the running event loop; threads share every loop-less handle."""
        # Asked at each use of a Database, so it reads attributes and calls nothing in threads.
        loop = self._pool.loop
        return not self._pool.close_reason and (loop is None or loop is current_loop())

    @property
    def orphaned(self) -> bool:
        """Whether the event loop that the handle belongs to is closed."""
        return is_over(self._pool.loop)

    def stats(self) -> dict[str, int]:
        """Return counters named as in psycopg_pool: sizes in connections, times in milliseconds."""
        return self._in_force.stats()

    def fast_path(self, row_factory: RowFactory | None, framework: str | None = None) -> FastPath | None:
        """Return the fast path for statements with rows as *row_factory*, or else the connection's own, makes them.

        None where the configuration asks for psycopg's own way.  *framework* as for `borrow`.
        """
        telemetry = self._blueprint.telemetry
        tag = query_tag(telemetry.application, framework, None) if telemetry.query_tags else None
        fast = FastPath(self._pool, row_factory, tag)
        return fast if fast.possible else None

    def forget_plans(self) -> None:
        """Make every connection prepare its statements again."""
        self._in_force.forget_plans()

    @property
    def shares_sessions(self) -> bool:
        """Whether a pooler gives a session to one client after the other, as far as is known."""
        return self._blueprint.pgbouncer or self._pool.shares_sessions

    @property
    def needs_transactions(self) -> bool:
        """Whether settings hold only inside a transaction, because PgBouncer shares the sessions."""
        return bool(self._blueprint.transaction_settings)


def _is_unused(entry: Lease | _Nested) -> bool:
    # One reference is the lease's own, the other that of this call.
    return isinstance(entry, Lease) and sys.getrefcount(entry.connection) <= 2


_blocks: ContextVar[tuple[ref[Lease], ...]] = ContextVar("pgmonkey_blocks", default=())
"""The single connections whose blocks the current context is in; weakly, as a context may live long."""


def _leases() -> list[Lease]:
    """Return those of `_blocks` that are not given back."""
    return [lease for reference in _blocks.get() if (lease := reference()) is not None and lease.active]


class _Nested:
    """A block inside a block of the same single connection: a savepoint."""

    def __init__(self, connection: AnyConnection, stack: ExitStack) -> None:
        self.connection = connection
        self._stack = stack

    @classmethod
    def begin(cls, outer: Lease) -> _Nested:
        stack = ExitStack()
        stack.enter_context(outer.connection.transaction())
        return cls(outer.connection, stack)

    def finish(self, error: BaseException | None = None) -> None:
        if error is None:
            self._stack.close()
        else:
            self._stack.__exit__(type(error), error, error.__traceback__)


def handle_for(config: Config, kind: Kind, holder: Holder, *, fresh: bool = False) -> ConnectionHandle:
    """Return the one handle of the process for *config* and *kind*; *holder* keeps it from being closed.

    With *fresh*, a new handle replaces the cached one.
    """
    return cache.acquire((config.digest, kind, loop_id()), ConnectionHandle, config, holder, fresh=fresh)


def open_handle(
    config: Config, kind: Kind, holder: Holder, *, fresh: bool = False, timeout: float | None = None
) -> ConnectionHandle:
    """Do as `handle_for`, and open the handle.

    *timeout* is how long connecting may take, in seconds, the
    configuration's by default.  Raises `ServerUnavailableError` when there is no server.
    """
    handle = handle_for(config, kind, holder, fresh=fresh)
    try:
        pool = handle._pool if (find := detour.find) is None else find(handle._pool)
        if not pool.opened:
            handle.open(timeout)
    except BaseException:
        if handle.unused:  # another caller may have succeeded
            key: Key = (config.digest, kind, loop_id())
            cache.release(holder, key)
        raise
    return handle
