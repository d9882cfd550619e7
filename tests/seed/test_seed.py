"""Every claim of the seed document, in its order.  README.md beside this file maps each claim to its test here."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import yaml

from pgmonkey import ConfigError, EnvInterpolationError, PGConnectionManager, load_config, redact_config

from .conftest import RECIPES

if TYPE_CHECKING:
    from .conftest import Run

Backends = Callable[[], list[tuple[int, str]]]
KINDS: tuple[Any, ...] = ("normal", "pool", "async", "async_pool")


async def get(manager: PGConnectionManager, config: Any, kind: Any, **options: Any) -> Any:
    found: Any = manager.get_database_connection(config, kind, **options)
    return await found if inspect.isawaitable(found) else found


def ok(finished: Any) -> str:
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    printed: str = finished.stdout
    return printed


# -- What pgmonkey does behind the scenes ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_connections_are_cached_by_config_content(kind: str, folder: Path) -> None:
    manager = PGConnectionManager()
    first = await get(manager, folder / "config.yaml", kind)
    shutil.copy(folder / "config.yaml", folder / "same content.yaml")
    assert await get(manager, folder / "same content.yaml", kind) is first
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["connection_settings"]["application_name"] = "different content"
    (folder / "other.yaml").write_text(yaml.safe_dump(config))
    assert await get(manager, folder / "other.yaml", kind) is not first
    short, _, _ = next(iter(manager.cache_info["connection_types"])).partition(":")
    assert re.fullmatch("[0-9a-f]{12}", short), "a SHA-256, shortened"


def test_repeated_calls_open_no_pool_storm(folder: Path, backends: Backends) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pool_settings"] = {"min_size": 2, "max_size": 3}
    # Kept, as a pool that nobody refers to any more is closed.
    pools = [PGConnectionManager().get_database_connection_from_dict(config, "pool") for _ in range(30)]
    assert 1 <= len(backends()) <= 3
    assert all(pool is pools[0] for pool in pools)


async def test_async_with_borrows_and_returns_and_the_pool_stays_open(folder: Path) -> None:
    pool = await get(PGConnectionManager(), folder / "config.yaml", "async_pool")
    pids = []
    for _ in range(2):
        async with pool as connection:
            pids.append(connection.info.backend_pid)
            assert pool.stats()["pool_available"] == pool.stats()["pool_size"] - 1
        assert pool.stats()["pool_available"] == pool.stats()["pool_size"]
    assert pids[0] == pids[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_block_commits_on_clean_exit_and_rolls_back_on_exception(
    kind: str, folder: Path, observer: psycopg.Connection[Any]
) -> None:
    connection = await get(PGConnectionManager(), folder / "config.yaml", kind)
    insert = "INSERT INTO users VALUES (%s, 'new')"
    for number, error in ((3, None), (4, ZeroDivisionError)):
        try:
            if "async" in kind:
                async with connection as conn:
                    await conn.execute(insert, [number])
                    if error:
                        raise error
            else:
                with connection as conn:
                    conn.execute(insert, [number])
                    if error:
                        raise error
        except ZeroDivisionError:
            pass
    assert observer.execute("SELECT id FROM users WHERE name = 'new'").fetchall() == [(3,)]


@pytest.mark.parametrize("recipe", ["normal.py", "pool.py", "async_.py", "async_pool.py"])
def test_everything_is_closed_when_the_process_exits(recipe: str, run: Run, server: Any, dbname: str) -> None:
    # Registered before pgmonkey's own, and so called after it.
    look = """
import atexit, gc
def look():
    from pgmonkey import AsyncConnectionHandle, ConnectionHandle
    handles = [each for each in gc.get_objects() if isinstance(each, (ConnectionHandle, AsyncConnectionHandle))]
    print('open:', *{handle.stats()['pool_size'] for handle in handles})
atexit.register(look)
"""
    last = ok(run(recipe, before=look)).splitlines()[-1]
    assert last.startswith("open:")
    assert set(last.split()[1:]) <= {"0"}
    query = "SELECT sessions > 0, sessions_abandoned FROM pg_stat_database WHERE datname = %s"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        assert connection.execute(query, [dbname]).fetchone() == (True, 0), "every session said goodbye"


def test_the_cache_is_safe_for_threads(folder: Path, backends: Backends) -> None:
    found: list[Any] = []
    barrier = threading.Barrier(16)

    def work() -> None:
        barrier.wait()
        found.append(PGConnectionManager().get_database_connection(folder / "config.yaml", "pool"))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(map(id, found))) == 1
    assert len(backends()) <= 4


def test_unknown_connection_settings_produce_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["connection_settings"]["nonsense"] = 1
    path.write_text(yaml.safe_dump(config))
    pool = PGConnectionManager().get_database_connection(path, "pool")
    assert [(record.levelno, "nonsense" in record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, True)
    ]
    with pool as connection:
        connection.execute("SELECT 1")


@pytest.mark.parametrize("section", ["pool_settings", "async_pool_settings"])
def test_pool_settings_are_validated(section: str, folder: Path) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section] = {"min_size": 5, "max_size": 4}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"min_size \(5\) is larger than max_size \(4\)"):
        PGConnectionManager().get_database_connection(path, "pool")


@pytest.mark.parametrize("check", [True, False])
def test_check_on_checkout_validates_with_select_1(check: bool, folder: Path, observer: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pool_settings"] = {"max_size": 1, "check_on_checkout": check}
    pool = PGConnectionManager().get_database_connection_from_dict(config, "pool")
    with pool as connection:
        pid = connection.info.backend_pid
    lease = pool.borrow()
    assert lease.connection.info.backend_pid == pid
    last = observer.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()[0]
    assert (last == "SELECT 1") == check
    lease.finish()


# -- Connection recipes ----------------------------------------------------------------------------------


def test_recipe_normal_connection(run: Run) -> None:
    assert "PostgreSQL" in ok(run("normal.py"))


def test_recipe_pooled_connection(run: Run) -> None:
    count, now = ok(run("pool.py")).splitlines()
    assert count == "(2,)"
    assert "datetime" in now


def test_recipe_async_connection(run: Run) -> None:
    assert "PostgreSQL" in ok(run("async_.py"))


def test_recipe_async_pooled_connection(run: Run) -> None:
    count, now = ok(run("async_pool.py")).splitlines()
    assert count == "(1,)"
    assert "datetime" in now


# -- Application patterns --------------------------------------------------------------------------------


def test_recipe_database_class_for_flask(run: Run) -> None:
    use = """
client = app.test_client()
db.execute("UPDATE users SET name = 'Anna' WHERE id = %s", [1])
assert db.fetch_one('SELECT name FROM users WHERE id = 1') == ('Anna',)
for _ in range(3):
    print(client.get('/users').get_json())
assert db.pool.stats()['pool_size'] <= 4 and db.manager.cache_info['size'] == 1
"""
    lines = ok(run("flask_database.py", code=use)).splitlines()
    assert lines == ["{'users': [{'id': 1, 'name': 'Anna'}, {'id': 2, 'name': 'Bob'}]}"] * 3


def test_recipe_async_database_class_for_fastapi(run: Run) -> None:
    use = """
from httpx import ASGITransport, AsyncClient
async def main():
    async with app.router.lifespan_context(app):
        await db.execute('UPDATE orders SET total = %s', [43])
        assert await db.fetch_one('SELECT total FROM orders') == (43,)
        async with AsyncClient(transport=ASGITransport(app), base_url='http://test') as client:
            answers = await asyncio.gather(*(client.get('/orders') for _ in range(20)))
            print({answer.text for answer in answers})
        assert db.pool.stats()['pool_size'] <= 4
    assert db.pool.closed
asyncio.run(main())
"""
    printed = ok(run("fastapi_database.py", code=use))
    assert printed == """{'{"orders":[{"id":7,"total":43}]}'}\n"""


# -- Environment variable interpolation ------------------------------------------------------------------


def test_interpolation_is_opt_in(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    assert load_config(folder / "config.yaml")["connection_settings"]["user"] == "${PGUSER:-postgres}"


def test_recipe_local_development(folder: Path, run: Run, environment: dict[str, str]) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    use = "\nwith conn as c: print(c.info.dbname, conn.kind)"
    assert ok(run("local_environment.py", code=use, env=environment)) == f"{environment['PGDATABASE']} normal\n"
    command = "pgmonkey pgconfig test --connconfig config.yaml --resolve-env"
    assert "connected" in ok(run(command=command, env=environment))


def test_defaults_serve_and_a_missing_password_is_a_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    for name in ("PGUSER", "PGPASSWORD", "PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvInterpolationError, match=r"\.password: environment variable PGPASSWORD"):
        load_config(folder / "config.yaml", resolve_env=True)
    monkeypatch.setenv("PGPASSWORD", "dev_password")
    settings = load_config(folder / "config.yaml", resolve_env=True)["connection_settings"]
    assert settings == {
        "user": "postgres",
        "password": "dev_password",
        "host": "localhost",
        "port": "5432",
        "dbname": "mydb",
    }


def test_recipe_docker(folder: Path, run: Run, environment: dict[str, str]) -> None:
    shutil.copy(RECIPES / "docker.yaml", folder / "config.yaml")
    assert "PostgreSQL" in ok(run("docker.py", env=environment))
    assert environment["PGPASSWORD"] not in (folder / "config.yaml").read_text(), "the file holds no secret"


def test_recipe_kubernetes(
    folder: Path, run: Run, environment: dict[str, str], config: dict[str, Any], server: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text(environment["PGPASSWORD"] + "\n")
    text = (RECIPES / "kubernetes.yaml").read_text().replace("/var/run/secrets/db/password", str(secret))
    (folder / "config.yaml").write_text(text)
    use = "\nimport asyncio\nasyncio.run(startup())\nprint(manager.cache_info['size'])"
    refused = run("kubernetes.py", code=use, env=environment)
    assert "server does not support SSL, but SSL was required" in refused.stderr, "sslmode reaches libpq"
    (folder / "config.yaml").write_text(text.replace("'require'", "'prefer'"))
    assert ok(run("kubernetes.py", code=use, env=environment)) == "1\n"


def test_from_file_trims_the_trailing_newline(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    text = (RECIPES / "kubernetes.yaml").read_text().replace("/var/run/secrets/db/password", str(tmp_path / "password"))
    (folder / "config.yaml").write_text(text)
    assert load_config(folder / "config.yaml", resolve_env=True)["connection_settings"]["password"] == "s3cret"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_missing_secret_file_fails_at_startup(kind: str, folder: Path) -> None:
    shutil.copy(RECIPES / "kubernetes.yaml", folder / "config.yaml")
    with pytest.raises(EnvInterpolationError, match="/var/run/secrets/db/password"):
        await get(PGConnectionManager(), folder / "config.yaml", kind, resolve_env=True)


def test_recipe_redacting(folder: Path, run: Run, config: dict[str, Any]) -> None:
    printed = ok(run("redacting.py"))
    assert "'password': '***REDACTED***'" in printed
    assert "'host': '127.0.0.1'" in printed
    assert config["connection_settings"]["password"] not in printed


@pytest.mark.parametrize(
    "key", ["password", "sslkey", "sslcert", "sslrootcert", "my_token", "a_secret_b", "credential"]
)
def test_what_gets_redacted(key: str) -> None:
    assert redact_config({"connection_settings": {key: "x"}}) == {"connection_settings": {key: "***REDACTED***"}}
    assert redact_config({key: ""}) == {key: ""}
    assert redact_config({key: None}) == {key: None}
    assert redact_config({"host": "x"}) == {"host": "x"}


# -- The command line ------------------------------------------------------------------------------------


def test_pgconfig_test_resolves_references(folder: Path, run: Run, environment: dict[str, str]) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    command = "pgmonkey pgconfig test --connconfig config.yaml --resolve-env"
    assert ": normal: connected" in ok(run(command=command, env=environment))


@pytest.mark.parametrize("kind", KINDS)
def test_pgconfig_test_overrides_the_connection_type(
    kind: str, folder: Path, run: Run, environment: dict[str, str]
) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    command = f"pgmonkey pgconfig test --connconfig config.yaml --resolve-env --connection-type {kind}"
    assert f": {kind}: connected" in ok(run(command=command, env=environment))


def test_pgconfig_test_allows_sensitive_defaults_when_told(folder: Path, run: Run, environment: dict[str, str]) -> None:
    text = (RECIPES / "local_environment.yaml").read_text()
    text = text.replace("${PGPASSWORD}", "${PGPASSWORD:-" + environment.pop("PGPASSWORD") + "}")
    (folder / "config.yaml").write_text(text)
    command = "pgmonkey pgconfig test --connconfig config.yaml --resolve-env"
    blocked = run(command=command, env=environment)
    assert blocked.returncode == 1
    assert "--allow-sensitive-defaults" in blocked.stderr
    assert "connected" in ok(run(command=f"{command} --allow-sensitive-defaults", env=environment))


def test_pgconfig_generate_code_resolves_references(folder: Path, run: Run, environment: dict[str, str]) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    command = "pgmonkey pgconfig generate-code --connconfig config.yaml --resolve-env"
    code = ok(run(command=command, env=environment))
    assert "resolve_env=True" in code
    assert "PostgreSQL" in ok(run(code=code, env=environment))


def test_without_the_flag_references_are_literal_and_fail(folder: Path, run: Run, environment: dict[str, str]) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    finished = run(command="pgmonkey pgconfig test --connconfig config.yaml", env=environment)
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr


# -- Quick reference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_every_type_is_cached_and_its_context_manager_reusable(kind: str, folder: Path) -> None:
    manager = PGConnectionManager()
    connection = await get(manager, folder / "config.yaml", kind)
    assert await get(manager, folder / "config.yaml", kind) is connection
    for _ in range(3):
        if "async" in kind:
            async with connection as conn:
                assert isinstance(conn, psycopg.AsyncConnection)
                await conn.execute("SELECT 1")
        else:
            with connection as conn:
                assert isinstance(conn, psycopg.Connection)
                conn.execute("SELECT 1")
    assert connection.stats()["pool_available"] == connection.stats()["pool_size"] >= 1


def test_a_pool_serves_threads_and_a_normal_connection_serves_them_in_turn(folder: Path) -> None:
    for kind, most in (("pool", 4), ("normal", 1)):
        handle: Any = PGConnectionManager().get_database_connection(folder / "config.yaml", kind)  # type: ignore[call-overload]
        pids: set[int] = set()

        def work(handle: Any = handle, pids: set[int] = pids) -> None:
            for _ in range(5):
                with handle as connection:
                    pids.add(connection.execute("SELECT pg_backend_pid()").fetchone()[0])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(pids) <= most, kind


# -- Cache management ------------------------------------------------------------------------------------


def test_cache_info(folder: Path) -> None:
    manager = PGConnectionManager()
    for kind in ("normal", "pool"):
        manager.get_database_connection(folder / "config.yaml", kind)
    info = manager.cache_info
    assert info["size"] == 2
    assert sorted(info["connection_types"].values()) == ["normal", "pool"]


def test_clear_cache(folder: Path, backends: Backends) -> None:
    manager = PGConnectionManager()
    pool = manager.get_database_connection(folder / "config.yaml", "pool")

    async def make_async() -> None:
        await manager.get_database_connection(folder / "config.yaml", "async_pool")

    asyncio.run(make_async())
    manager.clear_cache()
    assert manager.cache_info["size"] == 0
    assert pool.closed
    deadline = threading.Event()
    for _ in range(100):
        if not backends():
            break
        deadline.wait(0.05)
    assert backends() == []
    assert manager.get_database_connection(folder / "config.yaml", "pool") is not pool


async def test_clear_cache_async(folder: Path) -> None:
    manager = PGConnectionManager()
    pool = await get(manager, folder / "config.yaml", "async_pool")
    await manager.clear_cache_async()
    assert manager.cache_info["size"] == 0
    assert pool.closed
    assert await get(manager, folder / "config.yaml", "async_pool") is not pool


@pytest.mark.parametrize("kind", KINDS)
async def test_force_reload(kind: str, folder: Path) -> None:
    manager = PGConnectionManager()
    old = await get(manager, folder / "config.yaml", kind)
    new = await get(manager, folder / "config.yaml", kind, force_reload=True)
    assert new is not old
    assert old.closed
    assert await get(manager, folder / "config.yaml", kind) is new


def test_a_changed_variable_gives_a_new_connection_and_the_old_one_stays(
    folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(RECIPES / "local_environment.yaml", folder / "config.yaml")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    manager = PGConnectionManager()
    old = manager.get_database_connection(folder / "config.yaml", resolve_env=True)
    monkeypatch.setenv("PGHOST", "localhost")
    new = manager.get_database_connection(folder / "config.yaml", resolve_env=True)
    assert new is not old
    assert not old.closed
    assert manager.cache_info["size"] == 2
    manager.clear_cache()
    assert old.closed


# -- The map ---------------------------------------------------------------------------------------------


def test_the_map_names_every_test_and_only_those() -> None:
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_map_names_every_test_and_only_those"}
    assert json.dumps(sorted(named)) == json.dumps(sorted(here))
