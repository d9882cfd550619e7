"""Plans: how a connection executes a statement that psycopg has prepared on it.

The first executions go through psycopg.  When psycopg has prepared the statement, a plan keeps what that execution
used: the statement's name, psycopg's dumpers and loaders, the function that makes its rows.  From then on only the
parameters and the answer pass through psycopg.  Where a plan does not fit, psycopg's own way is taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dis import opmap
from enum import Enum
from functools import cached_property
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import rows
from psycopg.abc import Buffer, Params
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.sql import SQL, Composable
from psycopg.types.json import JsonDumper, JsonLoader

from .compat import FAST_PATH, PIPELINES, PostgresQuery
from .prepared import Prepared
from .psycopg_types import AnyConnection, AnyCursor, RowFactory
from .sql import Effect, Statement, effect_of
from .tags import tagged

V = TypeVar("V")


class Declined(Enum):
    """Returned by the fast path when nothing is done: the caller uses psycopg."""

    NO_PLAN = "no plan fits"
    REFUSED = "the server refused the prepared statement, which may be outdated: it is not to be used"


_AUTO = PyFormat.AUTO
# The instruction that sets an attribute.
_STORE = opmap["STORE_ATTR"]
# Packages of classes that adapters are derived from, beside psycopg's.
_STANDARD = ("abc", "builtins", "typing")
# Of one statement: plans for other session parameters and for parameters of other types.
_MAX_VARIANTS = 32
# The session parameters that psycopg's dumpers and loaders look at when they are made.
LOOKED_AT = (b"TimeZone", b"DateStyle", b"IntervalStyle", b"client_encoding")
# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _OK = int(TransactionStatus.IDLE), int(ConnStatus.OK)


def is_plain(connection: AnyConnection) -> bool:
    """Tell whether no pipeline, handlers, refusal or transaction settings are in force on the lent *connection*."""
    state = connection.__dict__
    return (
        FAST_PATH
        and PIPELINES
        and connection.pgconn.status == _OK
        and connection._pipeline is None
        and not connection._notice_handlers
        and not connection._notify_handlers
        and "refusal" not in state
        and "transaction_settings" not in state
    )


def is_psycopgs(row_factory: RowFactory) -> bool:
    """Tell whether *row_factory* is one of psycopg's, which make rows from the names of the columns and nothing else.

    Any other may be made anew for each result, and keep count of the rows.  Its module may be psycopg's by the means of
    `functools.wraps`; the module that its code runs in tells.
    """
    return getattr(row_factory, "__globals__", None) is vars(rows)


def _keeps_something(adapter: type | str) -> bool:
    """Tell whether an adapter class of the program's own may keep something: in ``__init__``, or in an attribute.

    psycopg makes one for each cursor, and a plan keeps it.
    """
    for owner in getattr(adapter, "__mro__", ()):
        package = owner.__module__.partition(".")[0]
        if not package.startswith("psycopg") and package not in _STANDARD:
            for name, member in vars(owner).items():
                code = getattr(member, "__code__", None)
                if name == "__init__" or isinstance(member, cached_property) or (code and _STORE in code.co_code[::2]):
                    return True
    return False


def text_key(query: Statement, context: AnyConnection | AnyCursor) -> object | None:
    """Return what is equal for statements of the same text, as psycopg sends it in *context*; None without a plan."""
    kind = query.__class__
    if kind is str:
        return query
    if type(query) is SQL:
        return query.as_string(None)
    if kind is bytes:
        return (query,)  # in a tuple: text and bytes cannot be compared where Python runs with -bb
    return (query.as_bytes(context),) if isinstance(query, Composable) else None


def remember(known: OrderedDict[Any, V], key: object, value: V, limit: int) -> None:
    """Put *value* into *known*; when that has more than *limit* then, forget what was put there first."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > limit:
        known.popitem(last=False)


class _Context:
    """What psycopg makes a Transformer from: a connection, and the types that are registered on it now."""

    def __init__(self, connection: AnyConnection) -> None:
        self.connection = connection
        self.adapters = AdaptersMap(connection._adapters or psycopg.adapters)


class _Columns:
    """What psycopg's row factories look at in a cursor: the result, and how the names in it are encoded."""

    __slots__ = ("_encoding", "pgresult")

    def __init__(self, result: PGresult, encoding: str) -> None:
        self.pgresult, self._encoding = result, encoding


class Plan:
    """How one connection executes one statement that is prepared on it."""

    __slots__ = (
        *("_count", "_key", "_bookkeeping", "_converter", "_dumps", "_loads", "_types", "_wanted"),
        *("busy", "dumpers", "effect", "encoding"),
        *("formats", "has_rows", "loaders", "make_row", "name", "params", "send", "session", "transformer"),
        "variants",
    )

    def __init__(
        self,
        pgconn: PGconn,
        prepared: Prepared,
        session: tuple[bytes | None, ...],
        name: bytes,
        query: PostgresQuery,
        cursor: AnyCursor,
        row_factory: RowFactory,
    ) -> None:
        self.name = name
        self.session = session
        self.transformer = query._tx
        self.transformer.set_pgresult(cursor.pgresult)
        self.transformer.set_pgresult(None, set_loaders=False)
        self.has_rows = cursor.description is not None
        self.make_row = row_factory(cursor)
        self.encoding: str = cursor._encoding
        self.effect = effect_of(query.query)
        self.send = pgconn.send_query_prepared
        # psycopg copies these maps before it changes them, so a type registered later is seen as another map.
        adapters = self.transformer.adapters
        self.dumpers, self.loaders = adapters._dumpers[_AUTO], adapters._loaders[0]
        self._dumps, self._loads = JsonDumper._dumps, JsonLoader._loads  # see `psycopg.types.json.set_json_loads`
        self.variants: OrderedDict[object, Plan] = OrderedDict()
        self.params: Sequence[Buffer | None] | None = None
        self.busy = False
        """Whether rows are being made by it.  They are made by the program's classes, so under no lock of ours."""
        self.formats = query.formats
        query.params = None
        self._converter = query
        self._bookkeeping = prepared
        self._key = (query.query, query.types)
        self._types, self._wanted = query.types, query._want_formats
        self._count = len(self._wanted or ()) if query._order is None else None

    def row_maker(self, row_factory: RowFactory, result: PGresult) -> Callable[..., Any]:
        """Return what makes a row of *result* as *row_factory* does, which is one of psycopg's.

        It is made anew each time, as psycopg makes it: that takes little longer than to look it up, and a class of rows
        that a program makes for one call is not kept.
        """
        return row_factory(_Columns(result, self.encoding))

    def fits(self, params: Params | None, adapters: AdaptersMap) -> bool:
        """Dump *params*; tell whether the statement can be executed with them, its types being those of *adapters*."""
        if self.busy or adapters._loaders[0] is not self.loaders:
            return False
        if JsonLoader._loads is not self._loads or JsonDumper._dumps is not self._dumps:
            return False
        if params is not None and (adapters._dumpers[_AUTO] is not self.dumpers or not self._dump(params)):
            return False
        prepared = self._bookkeeping
        if prepared.stale or prepared._names.get(self._key) is not self.name or prepared.prepare_threshold is None:
            return False
        prepared._names.move_to_end(self._key)  # used last, so evicted last
        return True

    @property
    def types(self) -> tuple[int, ...] | None:
        """The types of the parameters that were dumped last."""
        return self.transformer.types

    def _dump(self, params: Params) -> bool:
        kind, transformer, wanted = params.__class__, self.transformer, self._wanted
        if wanted is not None and (kind is tuple or kind is list) and len(params) == self._count:
            self.params = transformer.dump_sequence(params, wanted)  # type: ignore[arg-type]
            self.formats = transformer.formats
            return transformer.types == self._types
        query = self._converter
        query.dump(params)
        self.params, self.formats = query.params, query.formats
        query.params = None
        return query.types == self._types


class Plans:
    """The plans of one connection, by statement, session parameters and types of the statement's parameters.

    A plan is of use as long as psycopg keeps the statement prepared, so there are a few times ``prepared_max`` of them.
    psycopg's dumpers and loaders look at TimeZone, DateStyle, IntervalStyle and client_encoding when they are made, so
    a plan is good for the values that it was learnt under.  See `psycopg.types.datetime`.
    """

    def __init__(self, connection: AnyConnection, prepared: Prepared) -> None:
        self._connection = connection
        self._bookkeeping = prepared
        self._parameter = connection.pgconn.parameter_status
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        # Types whose adapters were looked at, and whether one of those may keep something.
        self._looked_at: tuple[object, object, bool] = (None, None, False)

    def find(self, key: object, params: Params | None, context: AnyConnection | AnyCursor | None = None) -> Plan | None:
        """Return the plan for *key*, with *params* dumped; None when psycopg's own way is to be taken.

        The types are those registered on *context*, which is the pooled connection when None.
        """
        plan = self._plans.get(key)
        if plan is None:
            return None
        parameter, session = self._parameter, plan.session
        # One by one, which is faster than a tuple of them, and nearly always the same.
        if (
            parameter(b"TimeZone") != session[0]
            or parameter(b"DateStyle") != session[1]
            or parameter(b"IntervalStyle") != session[2]
            or parameter(b"client_encoding") != session[3]
        ):
            session = self._session()
            plan = plan.variants.get(session)
            if plan is None:
                return None
        adapters = (context or self._connection)._adapters or psycopg.adapters
        if plan.fits(params, adapters):
            return plan
        # The latest one was made for parameters of other types.
        plan = plan.variants.get((session, plan.types))
        return plan if plan is not None and plan.fits(params, adapters) else None

    def _session(self) -> tuple[bytes | None, ...]:
        return tuple(map(self._parameter, LOOKED_AT))

    def _keep_something(self, adapters: AdaptersMap) -> bool:
        """Tell whether one of *adapters* may keep what it found when it was made."""
        loaders, dumpers = adapters._loaders[0], adapters._dumpers[_AUTO]
        if self._looked_at[0] is not loaders or self._looked_at[1] is not dumpers:
            found = any(map(_keeps_something, (*loaders.values(), *dumpers.values())))
            self._looked_at = loaders, dumpers, found
        return self._looked_at[2]

    def adapted(self, plan: Plan, result: PGresult) -> Plan:
        """Return what reads *result* of *plan*, which has changed what psycopg's loaders look at."""
        other = copy(plan)
        other.transformer = Transformer(_Context(self._connection))
        other.transformer.set_pgresult(result)
        other.encoding = self._connection.info.encoding
        return other

    def forget(self) -> None:
        """Have every statement prepared, and its plan learnt, anew: the tables have changed.  Safe in any thread."""
        self._bookkeeping.stale = True

    def learn(
        self,
        key: object,
        statement: Statement,
        params: Params | None,
        cursor: AnyCursor,
        row_factory: RowFactory,
    ) -> Plan | None:
        """Remember how *cursor* has executed *statement*; None unless it is prepared, and with the pool's own types."""
        connection, prepared = self._connection, self._bookkeeping
        # psycopg's cursors keep `_query` only where they did not execute a prepared statement.
        if not FAST_PATH or not prepared._names or cursor.pgresult is None or cursor._query is not None:
            return None
        if cursor._query_cls is not PostgresQuery or not is_psycopgs(row_factory):
            return None
        if connection._notice_handlers or connection._notify_handlers:
            return None
        context = _Context(connection)
        own, common = cursor._adapters, context.adapters
        if own._loaders[0] is not common._loaders[0] or own._dumpers[_AUTO] is not common._dumpers[_AUTO]:
            return None  # types of the borrower's own, which the next one does not have
        if self._keep_something(own):
            return None
        query = PostgresQuery(Transformer(context))
        session = self._session()
        try:
            query.convert(statement, params)
            if "tag" in cursor._conn.__dict__:
                query.query = tagged(query.query, cursor._conn.__dict__["tag"])
            name = prepared.name_of((query.query, query.types))
            if name is None or effect_of(query.query) is Effect.LASTING:  # nothing is cleaned after a plan
                return None
            plan = Plan(connection.pgconn, prepared, session, name, query, cursor, row_factory)
        except Exception:
            return None  # the statement has run: what a dumper or a row factory finds wrong now is no error
        latest = self._plans.get(key)
        if latest is not None:
            plan.variants = latest.variants
        # To begin the search with, in this session, and for parameters of these types.
        remember(self._plans, key, plan, 4 * prepared.prepared_max)
        remember(plan.variants, session, plan, _MAX_VARIANTS)
        remember(plan.variants, (session, query.types), plan, _MAX_VARIANTS)
        return plan


Read: TypeAlias = Callable[[Plan, PGresult], Any]
"""Makes the answer of a query method from a result."""


def read_one(plan: Plan, result: PGresult, row_factory: RowFactory | None = None) -> object:
    """Return the first row, None when there is none; by a *row_factory*, if given, which is one of psycopg's."""
    if not result.ntuples:
        return None
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    row = transformer.load_row(0, plan.make_row if row_factory is None else plan.row_maker(row_factory, result))
    transformer.set_pgresult(None, set_loaders=False)
    return row


def read_exactly_one(plan: Plan, result: PGresult, row_factory: RowFactory | None = None) -> tuple[int, object]:
    """Return the number of rows, and the row where that is 1; *row_factory* as for `read_one`."""
    count = result.ntuples
    return count, read_one(plan, result, row_factory) if count == 1 else None


def read_value(plan: Plan, result: PGresult) -> object:
    """Return the first column of the first row, None when there is none."""
    if not result.ntuples:
        return None
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    row: tuple[object, ...] = transformer.load_row(0, tuple)
    transformer.set_pgresult(None, set_loaders=False)
    return row[0]


def read_values(plan: Plan, result: PGresult) -> list[object]:
    """Return the first column of all rows."""
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    found: list[object] = transformer.load_rows(0, result.ntuples, itemgetter(0))
    transformer.set_pgresult(None, set_loaders=False)
    return found


def read_all(plan: Plan, result: PGresult, row_factory: RowFactory | None = None) -> list[object]:
    """Return all rows; *row_factory* as for `read_one`."""
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    make_row = plan.make_row if row_factory is None else plan.row_maker(row_factory, result)
    found: list[object] = transformer.load_rows(0, result.ntuples, make_row)
    transformer.set_pgresult(None, set_loaders=False)
    return found


def read_count(plan: Plan, result: PGresult) -> int:
    """Return the number of rows affected, as psycopg's ``rowcount`` does."""
    if result.status == ExecStatus.TUPLES_OK:
        return result.ntuples
    count = result.command_tuples
    return -1 if count is None else count
