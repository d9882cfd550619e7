"""What applications write, a line for each, beside the same with psycopg_pool."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.adapt import Loader
from psycopg_pool import ConnectionPool

from pgmonkey import Database, PGConnectionManager

from .verdict import of_pairs
from .workloads import ROWS

_QUERY = "SELECT id, name, made FROM things WHERE id = %s"
_SPELLINGS: dict[str, Any] = {
    "leading comment": f"/* by its key */ {_QUERY}",
    "trailing comment": f"{_QUERY} -- by its key",
    "own function": "SELECT own(id), name, made FROM things WHERE id = %s",
    "date(x)": "SELECT id, name, date(made) FROM things WHERE id = %s",
    "AS t(x)": "SELECT x, name, made FROM (SELECT id, name, made FROM things WHERE id = %s) AS t(x)",
    "WITH t(x) AS": "WITH t(x) AS (SELECT id, name, made FROM things WHERE id = %s) SELECT x, name, made FROM t",
    "'for update' in a string": "SELECT id, 'for update', made FROM things WHERE id = %s",
    "bytes": _QUERY.encode(),
    "sql.SQL": sql.SQL(_QUERY),
    "composed": sql.SQL("SELECT {}, name, made FROM things WHERE id = %s").format(sql.Identifier("id")),
    "20,000 characters": f"{_QUERY} /* {'x' * 20_000} */",
}
_WIDE: Any = f"SELECT {', '.join(f'id + {number}, name' for number in range(25))} FROM things WHERE id = %s"  # noqa: S608
_MANY = "SELECT id, name, made FROM things WHERE id <= 5000"
_COPY = "COPY log FROM STDIN"


class Case(NamedTuple):
    """What ours does, what does the same on psycopg_pool, and how often each is called in its turn."""

    ours: Callable[[], object]
    theirs: Callable[[], object]
    calls: int = 3


class PointLoader(Loader):
    """What a program registers for a type of its own."""

    def load(self, data: Any) -> str:
        """Return the text."""
        return bytes(data).decode()


def registering(connection: Any) -> None:
    """Register a type, as pgvector does."""
    connection.adapters.register_loader("point", PointLoader)


def more_prepared(connection: Any) -> None:
    """Keep more statements prepared than psycopg does by default."""
    connection.prepared_max = 1000


@contextmanager
def _cases(dsn: str) -> Iterator[dict[str, Case]]:
    keys = cycle(random.Random(1).sample(range(1, ROWS + 1), 1000))  # noqa: S311
    with ExitStack() as stack:

        def database(configure: Callable[[Any], None] | None = None, **options: Any) -> Database[Any]:
            pool = {"min_size": 1, "max_size": 1, "configure": configure}
            made = Database({"connection_settings": {"conninfo": dsn}, "pool_settings": pool}, **options)
            stack.callback(made.close)
            return made

        def pool(configure: Callable[[Any], None] | None = None) -> ConnectionPool[Any]:
            made = stack.enter_context(ConnectionPool(dsn, min_size=1, max_size=1, open=True, configure=configure))
            made.wait()
            return made

        plain, values, registered, many = (
            database(),
            database(session_values=lambda: {"app.tenant": 42}),
            database(registering),
            database(more_prepared),
        )
        peer, peer_registered, peer_many = pool(), pool(registering), pool(more_prepared)
        manager = PGConnectionManager()
        stack.callback(manager.clear_cache)
        # Two, so that it is not the pool of `plain`, which the process would share.
        handle = manager.get_database_connection_from_dict(
            {"connection_settings": {"conninfo": dsn}, "pool_settings": {"min_size": 1, "max_size": 2}}, "pool"
        )

        def method(query: Any = _QUERY, on: Database[Any] = plain) -> Callable[[], object]:
            return lambda: on.fetch_one(query, (next(keys),))

        def idiom(query: Any = _QUERY, on: ConnectionPool[Any] = peer) -> Callable[[], object]:
            def call() -> object:
                with on.connection() as connection:
                    return connection.execute(query, (next(keys),)).fetchone()

            return call

        def unit(query: Any = _QUERY, on: Database[Any] = plain) -> Callable[[], object]:
            def call() -> object:
                with on.unit_of_work():
                    return on.fetch_one(query, (next(keys),))

            return call

        def with_values() -> object:
            with peer.connection() as connection:
                connection.execute("SELECT set_config('app.tenant', %s, true)", ("42",))
                return connection.execute(_QUERY, (next(keys),)).fetchone()

        def by_method() -> object:
            with plain.transaction():
                return plain.fetch_one(_QUERY, (next(keys),))

        def by_connection() -> object:
            with plain.transaction() as connection:
                return connection.execute(_QUERY, (next(keys),)).fetchone()

        def by_handle() -> object:
            with handle as connection:
                return connection.execute(_QUERY, (next(keys),)).fetchone()

        def streamed() -> int:
            return sum(1 for _ in plain.stream(_MANY))

        def streamed_by_peer() -> int:
            with peer.connection() as connection, connection.cursor("stream") as cursor:
                cursor.itersize = 1000
                return sum(1 for _ in cursor.execute(_MANY))

        def copied(connection: Any) -> None:
            with connection.cursor().copy(_COPY) as copy:
                for number in range(1000):
                    copy.write_row((number, "one"))

        def copied_by_ours() -> None:
            with plain.transaction() as connection:
                copied(connection)

        def copied_by_peer() -> None:
            with peer.connection() as connection:
                copied(connection)

        def rotation(number: int, on: Database[Any], other: ConnectionPool[Any], *, zipf: bool = False) -> Case:
            queries: list[Any] = [_QUERY.replace("id,", f"{index},", 1) for index in range(number)]
            weights = [1 / index for index in range(1, number + 1)] if zipf else None
            drawn = random.Random(1).choices(queries, weights, k=5000) if zipf else queries  # noqa: S311
            ours, theirs = cycle(drawn), cycle(drawn)
            return Case(lambda: method(next(ours), on)(), lambda: idiom(next(theirs), other)(), max(number * 2, 200))

        yield {
            "query method": Case(method(), idiom(), 200),
            "request that reads once": Case(unit(), idiom(), 200),
            "transaction, a query method": Case(by_method, idiom(), 200),
            "transaction, `conn.execute`": Case(by_connection, idiom(), 200),
            "`with pool as conn`": Case(by_handle, idiom(), 200),
            "session values, query method": Case(method(on=values), with_values, 200),
            "session values, request": Case(unit(on=values), with_values, 200),
            "a registered type, query method": Case(method(on=registered), idiom(on=peer_registered), 200),
            "50 columns": Case(method(_WIDE), idiom(_WIDE), 100),
            "stream of 5000 rows": Case(streamed, streamed_by_peer),
            "COPY of 1000 rows": Case(copied_by_ours, copied_by_peer),
            "50 statements in turn": rotation(50, plain, peer),
            "51 statements in turn": rotation(51, plain, peer),
            "200 statements in turn": rotation(200, plain, peer),
            "500 statements in turn, `prepared_max` raised": rotation(500, many, peer_many),
            "300 statements by Zipf's law": rotation(300, plain, peer, zipf=True),
            **{f"request, {name}": Case(unit(query), idiom(query), 200) for name, query in _SPELLINGS.items()},
        }


def _seconds(function: Callable[[], object], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def measure(dsn: str, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds of each call, ours and theirs, which take turns."""
    times: dict[str, tuple[list[float], list[float]]] = {}
    with _cases(dsn) as cases:
        for name, case in cases.items():
            ours, theirs = times[name] = [], []
            for turn in range(2 * rounds + 4):
                mine, others = _seconds(case.ours, case.calls), _seconds(case.theirs, case.calls)
                if turn > 3:  # the first ones have the statements prepared
                    ours += mine
                    theirs += others
    return times


def table(times: dict[str, tuple[list[float], list[float]]]) -> list[str]:
    """Return a table: of each case the median, what 95 and 99 of 100 calls do not exceed, and the ratio."""
    lines = ["| | pgmonkey: median, 95th, 99th percentile | psycopg_pool | ratio |", "|---|---|---|---|"]
    for name, (ours, theirs) in times.items():
        cells = [_percentiles(each) for each in (ours, theirs)]
        ratio = statistics.median(ours) / statistics.median(theirs)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | **{ratio:.2f}** |")
    medians = {name: tuple(map(statistics.median, pair)) for name, pair in times.items()}
    title = "### What applications write, beside psycopg_pool's idiom: one thread, keys at random"
    return [title, "", of_pairs(medians), "", *lines, ""]


def _percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return ", ".join(f"{cuts[percent - 1] * 1e6:.0f}" for percent in (50, 95, 99)) + " µs"
