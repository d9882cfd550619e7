"""Passwords that change on the server and in the secret file, under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import yaml

from pgmonkey import Database

from .clusters import Cluster
from .load import Load

Figure = Callable[[str, str], None]


def test_a_password_that_is_rotated(
    config: dict[str, Any], cluster: Cluster, dbname: str, figure: Figure, tmp_path: Path
) -> None:
    cluster.execute("DROP ROLE IF EXISTS rotating")
    cluster.execute("CREATE ROLE rotating LOGIN PASSWORD 'p0'")
    cluster.execute("GRANT ALL ON t TO rotating", dbname)
    secret, path = tmp_path / "secret", tmp_path / "config.yaml"
    secret.write_text("p0\n")
    # A lifetime of half a second, so that there are new connections all the time.
    pool = {"min_size": 4, "max_size": 8, "timeout": 10, "max_lifetime": 0.5}
    settings = {**config["connection_settings"], "user": "rotating", "password": {"from_file": str(secret)}}
    path.write_text(
        yaml.safe_dump({"connection_settings": settings, "pool_settings": pool, "async_pool_settings": pool})
    )
    complete: list[float] = []
    with Load(str(path), resolve_env=True) as load:
        for number in range(1, 6):
            time.sleep(0.7)
            cluster.execute(f"ALTER ROLE rotating PASSWORD 'p{number}'")
            new = tmp_path / "new"
            new.write_text(f"p{number}\n")
            new.replace(secret)
            complete.append(time.monotonic())
        time.sleep(1)
        made = load.database.stats()["connections_num"]
    changes = list(zip(complete, [*complete[1:], float("inf")], strict=True))
    late = [o for o in load.failed() if any(since < o.began < until - 0.2 for since, until in changes)]
    assert late == []
    with psycopg.connect(cluster.dsn(dbname), autocommit=True) as connection:
        assert not load.lost(connection)
    cluster.execute("DROP OWNED BY rotating", dbname)
    figure(
        "Password changed on the server and in the secret file under load, 5 times",
        f"{len(load.acknowledged)} writes over {made} connections of threads alone; "
        f"{len(late)} fail that began after a change was complete, {len(load.failed())} during one",
    )


def test_a_token_that_expires(config: dict[str, Any], cluster: Cluster, figure: Figure) -> None:
    cluster.execute("DROP ROLE IF EXISTS token")
    cluster.execute("CREATE ROLE token LOGIN PASSWORD 't0'")
    tokens = ["t0"]
    asked = 0

    def provider() -> str:
        nonlocal asked
        asked += 1
        return tokens[-1]

    settings = {**config["connection_settings"], "user": "token", "password": provider}
    database = Database({"connection_settings": settings, "pool_settings": {"min_size": 2, "max_lifetime": 0.1}})
    for number in range(1, 4):
        assert database.fetch_value("SELECT 1") == 1
        cluster.execute(f"ALTER ROLE token PASSWORD 't{number}'")
        tokens.append(f"t{number}")
        time.sleep(0.15)
    assert database.fetch_value("SELECT 1") == 1
    assert asked >= 4
    database.close()
    figure("A function as the password", f"asked for each of {asked} connections, 0 errors")
