"""The manager and the cache behind it: what is shared, with whom, and for how long."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from pgmonkey import AsyncDatabase, ConfigError, Database, PGConnectionManager, PoolClosedError
from pgmonkey._pool.cache import cache

Backends = Callable[[], list[tuple[int, str]]]


def test_the_same_configuration_gives_the_same_object(config_file: Path) -> None:
    manager = PGConnectionManager()
    pool = manager.get_database_connection(config_file, "pool")
    assert manager.get_database_connection(str(config_file), "pool") is pool
    assert manager.get_database_connection(config_file, "normal") is not pool
    as_dictionary = yaml.safe_load(config_file.read_text())
    assert PGConnectionManager().get_database_connection_from_dict(as_dictionary, "pool") is pool


def test_the_kind_defaults_to_the_files(config_file: Path, config: dict[str, Any]) -> None:
    assert PGConnectionManager().get_database_connection(config_file).kind == "normal"
    config_file.write_text(yaml.safe_dump({**config, "connection_type": "pool"}))
    assert PGConnectionManager().get_database_connection(config_file).kind == "pool"


def test_an_unknown_kind_is_refused(config_file: Path) -> None:
    unknown: Any = "poool"
    with pytest.raises(ConfigError, match="'poool' is not a connection type"):
        PGConnectionManager().get_database_connection(config_file, unknown)


def test_cache_info_counts_every_kind(config: dict[str, Any]) -> None:
    manager = PGConnectionManager()
    assert manager.cache_info == {"size": 0, "connection_types": {}}
    manager.get_database_connection_from_dict(config, "normal")
    manager.get_database_connection_from_dict(config, "pool")
    manager.get_database_connection_from_dict(config, "pool")
    info = manager.cache_info
    assert info["size"] == 2
    assert sorted(info["connection_types"].values()) == ["normal", "pool"]


def test_a_connection_that_cannot_be_made_is_not_cached(config: dict[str, Any]) -> None:
    manager = PGConnectionManager()
    config["connection_settings"]["dbname"] = "missing"
    with pytest.raises(psycopg.OperationalError):
        manager.get_database_connection_from_dict(config, "pool")
    assert manager.cache_info["size"] == 0
    assert not cache._entries


def test_a_pool_survives_a_server_that_is_away(config: dict[str, Any], server: Any, dbname: str) -> None:
    manager = PGConnectionManager()
    pool = manager.get_database_connection_from_dict(config, "pool")
    database = sql.Identifier(dbname)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        admin.execute(query, [dbname])
        assert manager.get_database_connection_from_dict(config, "pool") is pool
        for _ in range(9):
            with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
                pool.borrow()
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(database))
    assert manager.get_database_connection_from_dict(config, "pool") is pool
    with pool as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_clearing_closes_what_nobody_else_holds(config: dict[str, Any], backends: Backends) -> None:
    one, other = PGConnectionManager(), PGConnectionManager()
    pool = one.get_database_connection_from_dict(config, "pool")
    assert other.get_database_connection_from_dict(config, "pool") is pool
    one.clear_cache()
    assert one.cache_info["size"] == 0
    with pool as connection:
        connection.execute("SELECT 1")
    other.clear_cache()
    with pytest.raises(PoolClosedError), pool:
        pass
    wait_until(lambda: backends() == [])


def test_a_manager_that_cleared_its_cache_holds_again_what_it_asks_for(config: dict[str, Any]) -> None:
    one, other = PGConnectionManager(), PGConnectionManager()
    pool = one.get_database_connection_from_dict(config, "pool")
    other.get_database_connection_from_dict(config, "pool")
    other.clear_cache()
    assert other.get_database_connection_from_dict(config, "pool") is pool
    one.clear_cache()
    assert not pool.closed
    other.clear_cache()
    assert pool.closed


def test_a_pool_that_was_closed_is_not_found_again(config: dict[str, Any]) -> None:
    manager = PGConnectionManager()
    closed = manager.get_database_connection_from_dict(config, "pool")
    closed.close()
    with manager.get_database_connection_from_dict(config, "pool") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    manager.clear_cache()


def test_a_manager_that_is_gone_leaves_its_pool_to_who_uses_it(config: dict[str, Any], backends: Backends) -> None:
    """Without a variable for the manager, nobody else's `clear_cache` closes what it has given."""
    pool = PGConnectionManager().get_database_connection_from_dict(config, "pool")
    others = [PGConnectionManager(), PGConnectionManager()]
    for other in others:
        assert other.get_database_connection_from_dict(config, "pool") is pool, "still cached"
        other.clear_cache()
        assert not pool.closed
        with pool as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            del connection
    del pool
    wait_until(lambda: backends() == [])
    pool = others[0].get_database_connection_from_dict(config, "pool")
    others[0].clear_cache()
    assert pool.closed, "it is another one, which only this manager has given"


@pytest.mark.parametrize("kind", ["normal", "pool"])
def test_a_block_keeps_what_nobody_else_does(kind: Any, config: dict[str, Any], backends: Backends) -> None:
    with PGConnectionManager().get_database_connection_from_dict(config, kind) as connection:
        gc.collect()
        PGConnectionManager().get_database_connection_from_dict(config, kind)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: backends() == [])


async def test_a_block_of_tasks_keeps_what_nobody_else_does(config: dict[str, Any], backends: Backends) -> None:
    async with await PGConnectionManager().get_database_connection_from_dict(config, "async_pool") as connection:
        gc.collect()
        await connection.execute("SELECT 1")
    while backends():
        await asyncio.sleep(0.01)


def test_what_nobody_can_reach_is_closed(config: dict[str, Any], backends: Backends) -> None:
    """At once, without the garbage collector; what a borrower has kept does not keep its pool."""
    kept: list[object] = []
    config["pool_settings"] = {"min_size": 2, "max_size": 2}

    def use(database: Database[Any]) -> None:
        database.fetch_value("SELECT 1")
        with database.connection() as connection:
            kept.append(connection)
            kept.append(connection.execute("SELECT 1"))
        with database.transaction():
            database.fetch_value("SELECT 1")
        kept.append(database.stream("SELECT 1"))

    gc.disable()
    try:
        for number in range(10):
            settings = {**config["connection_settings"], "application_name": f"app {number}"}
            use(Database({**config, "connection_settings": settings}))
            kept.pop()
        wait_until(lambda: backends() == [])
    finally:
        gc.enable()
    with_upkeep = [thread for thread in threading.enumerate() if thread.name == "pgmonkey-upkeep"]
    wait_until(lambda: not any(thread.is_alive() for thread in with_upkeep))
    PGConnectionManager().get_database_connection_from_dict(config, "pool")
    assert len(cache._open) == 1, "the forgotten ones are forgotten here, too"


def test_another_users_database_stays_open(config: dict[str, Any]) -> None:
    """Of two that share a pool, the one that is dropped takes nothing away, and the last one that closes closes."""
    one, other = Database(config), Database(config)
    pid = one.fetch_value("SELECT pg_backend_pid()")
    assert other.fetch_value("SELECT pg_backend_pid()") == pid
    del one
    gc.collect()
    assert other.fetch_value("SELECT pg_backend_pid()") == pid
    third = Database(config)
    assert third.fetch_value("SELECT pg_backend_pid()") == pid
    third.close()
    assert other.fetch_value("SELECT pg_backend_pid()") == pid
    other.close()


def test_event_loops_that_are_over_leave_nothing(config: dict[str, Any], backends: Backends) -> None:
    database = AsyncDatabase(config)
    for _ in range(4):
        assert asyncio.run(database.fetch_value("SELECT 1")) == 1
    assert len(database._holder.held) == 1
    del database
    gc.collect()
    wait_until(lambda: backends() == [])


def test_force_reload_puts_a_fresh_connection_in_place(config: dict[str, Any]) -> None:
    one, other = PGConnectionManager(), PGConnectionManager()
    old = one.get_database_connection_from_dict(config, "pool")
    other.get_database_connection_from_dict(config, "pool")
    new = one.get_database_connection_from_dict(config, "pool", force_reload=True)
    assert new is not old
    assert not old.closed, "the other manager holds it"
    assert other.get_database_connection_from_dict(config, "pool") is new
    assert old.closed, "nobody holds it any more"


def test_a_changed_file_or_variable_gives_another_connection(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "name"
    secret.write_text("one\n")
    monkeypatch.setenv("PGM_TIMEOUT", "5")
    settings = {"connect_timeout": "${PGM_TIMEOUT}", "application_name": {"from_file": str(secret)}}
    config["connection_settings"].update(settings)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    manager = PGConnectionManager()

    def get() -> Any:
        return manager.get_database_connection(path, "pool", resolve_env=True)

    seen = [get()]
    assert get() is seen[0]
    monkeypatch.setenv("PGM_TIMEOUT", "6")
    seen.append(get())
    secret.write_text("two\n")
    seen.append(get())
    config["pool_settings"]["max_size"] = 3
    path.write_text(yaml.safe_dump(config))
    seen.append(get())
    assert len(set(map(id, seen))) == 4
    assert manager.cache_info["size"] == 4, "the old ones stay until clear_cache()"
    with seen[2] as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("two",)


def test_an_unchanged_file_is_not_read_again(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pgmonkey._config.source

    manager = PGConnectionManager()
    pool = manager.get_database_connection(config_file, "pool")

    def fail(path: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(pgmonkey._config.source, "read_document", fail)
    assert manager.get_database_connection(config_file, "pool") is pool


def test_thirty_two_threads_on_a_cold_cache_open_one_pool(config: dict[str, Any], backends: Backends) -> None:
    config["pool_settings"] = {"min_size": 2, "max_size": 8}
    barrier = threading.Barrier(32)
    pools: set[Any] = set()
    most: list[int] = []
    pids: set[int] = set()

    def work() -> None:
        barrier.wait()
        pool = PGConnectionManager().get_database_connection_from_dict(config, "pool")
        pools.add(pool)
        with pool as connection:
            pids.add(connection.info.backend_pid)
            time.sleep(0.01)
        most.append(len(backends()))

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pools) == 1
    assert len(pids) <= 8
    assert len(most) == 32
    assert max(most) <= 8


async def test_thirty_two_tasks_on_a_cold_cache_open_one_pool(config: dict[str, Any], backends: Backends) -> None:
    config["async_pool_settings"] = {"min_size": 2, "max_size": 8}
    pools: set[Any] = set()
    pids: set[int] = set()

    async def work() -> None:
        pool = await PGConnectionManager().get_database_connection_from_dict(config, "async_pool")
        pools.add(pool)
        async with pool as connection:
            pids.add(connection.info.backend_pid)
            await asyncio.sleep(0.01)
        assert len(backends()) <= 8

    await asyncio.gather(*(work() for _ in range(32)))
    assert len(pools) == 1
    assert len(pids) <= 8


def test_event_loops_one_after_another(config: dict[str, Any], backends: Backends) -> None:
    manager = PGConnectionManager()
    database = AsyncDatabase(config)

    async def main() -> Any:
        pool = await manager.get_database_connection_from_dict(config, "async_pool")
        single = await manager.get_database_connection_from_dict(config, "async")
        assert await manager.get_database_connection_from_dict(config, "async") is single
        async with pool as connection, single as other:
            await connection.execute("SELECT 1")
            await other.execute("SELECT 1")
        assert await database.fetch_value("SELECT 1") == 1
        return pool

    pools = [asyncio.run(main()) for _ in range(3)]
    assert len(set(map(id, pools))) == 3
    manager.clear_cache()
    asyncio.run(database.close())
    wait_until(lambda: backends() == [])


def test_event_loops_side_by_side(config: dict[str, Any]) -> None:
    database = AsyncDatabase(config)
    sums: list[int] = []

    async def main() -> None:
        values = await asyncio.gather(*(database.fetch_value("SELECT %s::int", [i]) for i in range(50)))
        sums.append(sum(values))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [1225] * 3


async def test_clear_cache_async(config: dict[str, Any]) -> None:
    manager = PGConnectionManager()
    pool = await manager.get_database_connection_from_dict(config, "async_pool")
    await manager.clear_cache_async()
    assert pool.closed
    assert manager.cache_info["size"] == 0


def test_a_database_and_a_manager_share(config: dict[str, Any]) -> None:
    database = Database(config)
    pool = PGConnectionManager().get_database_connection_from_dict(config, "pool")
    database.fetch_value("SELECT 1")
    assert database.stats() == pool.stats()


class Vault:
    """What knows the password, which a token of its own gives out."""

    def __init__(self, password: str) -> None:
        self.password = password

    def read(self, token: str = "") -> str:
        return self.password


def functions_of(vault: Vault) -> dict[str, Callable[[str], Callable[[], str]]]:
    """Ways to make a function that gives the password, given something to capture."""

    def with_default(token: str) -> Callable[[], str]:
        def read(token: str = token) -> str:
            return vault.read(token)

        return read

    return {
        "lambda": lambda token: lambda: vault.read(token),
        "partial": lambda token: partial(vault.read, token=token),
        "default": with_default,
    }


@pytest.mark.parametrize("way", ["lambda", "partial", "default"])
def test_a_function_that_is_made_anew_is_the_same(way: str, config: dict[str, Any], backends: Backends) -> None:
    """As a credential, it opens no pool at each call; one that has captured something else does."""
    vault = Vault(config["connection_settings"]["password"])
    make = functions_of(vault)[way]
    config["pool_settings"] = {"min_size": 1, "max_size": 1}
    manager = PGConnectionManager()

    def get(token: str) -> Any:
        settings = {**config["connection_settings"], "password": make(token)}
        return manager.get_database_connection_from_dict({**config, "connection_settings": settings}, "pool")

    pools = [get("one") for _ in range(10)]
    assert len(set(map(id, pools))) == 1
    assert len(backends()) == 1
    assert get("two") is not pools[0]
    manager.clear_cache()


def test_a_method_and_a_function_whose_token_is_renewed_stay_the_same(config: dict[str, Any]) -> None:
    vault, other = Vault(config["connection_settings"]["password"]), Vault(config["connection_settings"]["password"])
    token = "one"

    def read() -> str:
        return vault.read(token)

    manager = PGConnectionManager()

    def get(password: Callable[[], str]) -> Any:
        settings = {**config["connection_settings"], "password": password}
        return manager.get_database_connection_from_dict({**config, "connection_settings": settings}, "normal")

    first = get(read)
    token = "two"
    assert get(read) is first
    assert get(vault.read) is get(vault.read)
    assert get(vault.read) is not get(other.read)
    manager.clear_cache()


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("gone", [False, True], ids=["elsewhere", "removed"])
def test_a_relative_path_stays_what_it_was(
    gone: bool, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    (home / "secret").write_text(config["connection_settings"]["password"])
    config["connection_settings"]["password"] = {"from_file": "secret"}
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(home)
    database, manager = Database("config.yaml", resolve_env=True), PGConnectionManager()
    handle = manager.get_database_connection("config.yaml", "normal", resolve_env=True)
    monkeypatch.chdir(other)
    if gone:
        other.rmdir()
    for n in range(2):
        assert database.fetch_value("SELECT %s", [n]) == n
        database.close()  # it opens again, as the file says
    with handle as connection:
        connection.execute("SELECT 1")
    with pytest.raises(ConfigError, match="cannot read"):
        manager.get_database_connection("config.yaml", "normal", resolve_env=True)
    monkeypatch.chdir(home)
    assert manager.get_database_connection("config.yaml", "normal", resolve_env=True) is handle
    handle.close()
