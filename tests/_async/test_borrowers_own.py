"""What a borrower sets on its connection object is its own: the next one finds what `configure` and psycopg made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncServerCursor, IsolationLevel
from psycopg.adapt import Dumper
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.string import TextLoader

from pgmonkey import AsyncDatabase

from ..configs import pools

AnyAsyncConnection = AsyncConnection[Any]


class Shouting(Dumper):
    """Dumps text in capitals."""

    def dump(self, obj: str) -> bytes:
        return obj.upper().encode()


heard: list[object] = []


async def set_plainly(connection: AnyAsyncConnection) -> None:
    connection.prepare_threshold, connection.prepared_max = 1, 3
    own: dict[str, Any] = {"row_factory": dict_row, "cursor_factory": AsyncClientCursor, "anything": 1}
    own["server_cursor_factory"] = type("OwnServerCursor", (AsyncServerCursor,), {})
    for name, value in own.items():
        setattr(connection, name, value)


async def never_prepare(connection: AnyAsyncConnection) -> None:
    connection.prepare_threshold, connection.prepared_max = None, None


async def set_modes(connection: AnyAsyncConnection) -> None:
    await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
    await connection.set_read_only(True)
    await connection.set_deferrable(True)


async def set_autocommit(connection: AnyAsyncConnection) -> None:
    await connection.set_autocommit(True)


async def register(connection: AnyAsyncConnection) -> None:
    connection.adapters.register_dumper(str, Shouting)
    connection.adapters.types.add(TypeInfo("borrowers_own", 4242, 4243))
    connection.adapters.register_loader("int4", TextLoader)


async def listen(connection: AnyAsyncConnection) -> None:
    connection.add_notice_handler(heard.append)
    connection.add_notify_handler(heard.append)
    connection.pgconn.notice_handler = heard.append
    connection.pgconn.notify_handler = heard.append
    await connection.execute("LISTEN own")


async def set_parameters(connection: AnyAsyncConnection) -> None:
    await connection.execute("SET client_encoding TO latin1")
    await connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


async def in_pipeline(connection: AnyAsyncConnection) -> None:
    async with connection.pipeline():
        await set_plainly(connection)
        await connection.execute("SELECT 1")


async def two_phase(connection: AnyAsyncConnection) -> None:
    with suppress(psycopg.Error):
        await connection.tpc_begin("own")
        await connection.tpc_rollback()


ACTS = [
    *(set_plainly, never_prepare, set_modes, set_autocommit, register, listen, set_parameters),
    *(in_pipeline, two_phase),
]


async def state_of(connection: AnyAsyncConnection) -> dict[str, object]:
    """Return all that a borrower can tell of its connection object."""
    cursor = await connection.execute("SELECT 'a' AS a, 1 AS b")
    row = await cursor.fetchone()
    own = await (await connection.execute("SELECT %s::text", ["small"])).fetchone()
    with suppress(psycopg.Error):
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
    await connection.execute("NOTIFY own")
    mode = await (await connection.execute("SHOW transaction_read_only")).fetchone()
    return {
        **{name: getattr(connection, name) for name in ("autocommit", "isolation_level", "read_only", "deferrable")},
        **{name: getattr(connection, name) for name in ("prepare_threshold", "prepared_max", "row_factory")},
        **{name: getattr(connection, name) for name in ("cursor_factory", "server_cursor_factory", "closed", "broken")},
        "anything": getattr(connection, "anything", None),
        "encoding": connection.info.encoding,
        "timezone": str(connection.info.timezone),
        "own type": connection.adapters.types.get("borrowers_own"),
        "names": set(vars(connection)),
        "rows": (row, own, mode),
    }


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_what_a_borrower_sets_is_its_own(
    act: Callable[[AnyAsyncConnection], Awaitable[None]], config: dict[str, Any]
) -> None:
    heard.clear()
    database = AsyncDatabase(pools(config, max_size=1))
    async with database.connection() as connection:
        fresh = await state_of(connection)
        pid = connection.info.backend_pid
    for _ in range(2):
        async with database.connection() as connection:
            await act(connection)
        if act is listen:
            heard.clear()
        async with database.connection() as connection:
            assert await state_of(connection) == fresh
            assert connection.info.backend_pid == pid
        assert await database.fetch_one("SELECT %s::text, 1, current_setting('TimeZone')", ["small"]) == (
            *("small", 1),
            fresh["timezone"],
        )
    assert heard == []
    await database.close()


async def test_what_a_borrower_of_a_unit_sets_is_its_own(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1))
    async with database.transaction() as connection:
        fresh = await state_of(connection)
    async with database.transaction() as connection:
        await set_plainly(connection)
        await register(connection)
    async with database.transaction() as connection:
        assert await state_of(connection) == fresh
        assert await database.fetch_one("SELECT %s::text, 1", ["small"]) == ("small", 1)
    await database.close()
