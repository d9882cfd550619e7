# Generated from tests/_async/test_borrowers_own.py by tools/twins.py: change that file, then run the tool.

"""What a borrower sets on its connection object is its own: the next one finds what `configure` and psycopg made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, Connection, IsolationLevel, ServerCursor
from psycopg.adapt import Dumper
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.string import TextLoader

from pgmonkey import Database

from ..configs import pools

AnyAsyncConnection = Connection[Any]


class Shouting(Dumper):
    """Dumps text in capitals."""

    def dump(self, obj: str) -> bytes:
        return obj.upper().encode()


heard: list[object] = []


def set_plainly(connection: AnyAsyncConnection) -> None:
    connection.prepare_threshold, connection.prepared_max = 1, 3
    own: dict[str, Any] = {"row_factory": dict_row, "cursor_factory": ClientCursor, "anything": 1}
    own["server_cursor_factory"] = type("OwnServerCursor", (ServerCursor,), {})
    for name, value in own.items():
        setattr(connection, name, value)


def never_prepare(connection: AnyAsyncConnection) -> None:
    connection.prepare_threshold, connection.prepared_max = None, None


def set_modes(connection: AnyAsyncConnection) -> None:
    connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
    connection.set_read_only(True)
    connection.set_deferrable(True)


def set_autocommit(connection: AnyAsyncConnection) -> None:
    connection.set_autocommit(True)


def register(connection: AnyAsyncConnection) -> None:
    connection.adapters.register_dumper(str, Shouting)
    connection.adapters.types.add(TypeInfo("borrowers_own", 4242, 4243))
    connection.adapters.register_loader("int4", TextLoader)


def listen(connection: AnyAsyncConnection) -> None:
    connection.add_notice_handler(heard.append)
    connection.add_notify_handler(heard.append)
    connection.pgconn.notice_handler = heard.append
    connection.pgconn.notify_handler = heard.append
    connection.execute("LISTEN own")


def set_parameters(connection: AnyAsyncConnection) -> None:
    connection.execute("SET client_encoding TO latin1")
    connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


def in_pipeline(connection: AnyAsyncConnection) -> None:
    with connection.pipeline():
        set_plainly(connection)
        connection.execute("SELECT 1")


def two_phase(connection: AnyAsyncConnection) -> None:
    with suppress(psycopg.Error):
        connection.tpc_begin("own")
        connection.tpc_rollback()


ACTS = [
    *(set_plainly, never_prepare, set_modes, set_autocommit, register, listen, set_parameters),
    *(in_pipeline, two_phase),
]


def state_of(connection: AnyAsyncConnection) -> dict[str, object]:
    """Return all that a borrower can tell of its connection object."""
    cursor = connection.execute("SELECT 'a' AS a, 1 AS b")
    row = cursor.fetchone()
    own = (connection.execute("SELECT %s::text", ["small"])).fetchone()
    with suppress(psycopg.Error):
        connection.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
    connection.execute("NOTIFY own")
    mode = (connection.execute("SHOW transaction_read_only")).fetchone()
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
def test_what_a_borrower_sets_is_its_own(act: Callable[[AnyAsyncConnection], None], config: dict[str, Any]) -> None:
    heard.clear()
    database = Database(pools(config, max_size=1))
    with database.connection() as connection:
        fresh = state_of(connection)
        pid = connection.info.backend_pid
    for _ in range(2):
        with database.connection() as connection:
            act(connection)
        if act is listen:
            heard.clear()
        with database.connection() as connection:
            assert state_of(connection) == fresh
            assert connection.info.backend_pid == pid
        assert database.fetch_one("SELECT %s::text, 1, current_setting('TimeZone')", ["small"]) == (
            *("small", 1),
            fresh["timezone"],
        )
    assert heard == []
    database.close()


def test_what_a_borrower_of_a_unit_sets_is_its_own(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1))
    with database.transaction() as connection:
        fresh = state_of(connection)
    with database.transaction() as connection:
        set_plainly(connection)
        register(connection)
    with database.transaction() as connection:
        assert state_of(connection) == fresh
        assert database.fetch_one("SELECT %s::text, 1", ["small"]) == ("small", 1)
    database.close()
