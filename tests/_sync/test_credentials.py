# Generated from tests/_async/test_credentials.py by tools/twins.py: change that file, then run the tool.

"""Credentials that change while the process runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from pgmonkey import Database
from pgmonkey._sync.waiting import POOL_KIND, sleep

from ..configs import pools

Observer = psycopg.Connection[Any]


def test_a_changed_secret_is_used_for_the_next_connection(
    config: dict[str, Any], observer: Observer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"rotating_{observer.info.dbname}"
    observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'one'".encode())
    try:
        secret = tmp_path / "secret"
        secret.write_text("one\n")
        config["connection_settings"].update(user=role, password={"from_file": str(secret)})
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(pools(config, max_lifetime=0.05)))
        for source in (path, pools(config, max_lifetime=0.05)):
            observer.execute(f"ALTER ROLE {role} PASSWORD 'one'".encode())
            secret.write_text("one\n")
            database = Database(source, resolve_env=True)
            assert database.fetch_value("SELECT current_user") == role
            observer.execute(f"ALTER ROLE {role} PASSWORD 'two'".encode())
            secret.write_text("two and more\n")
            sleep(0.1)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                database.fetch_value("SELECT 1")
            secret.write_text("two\n")
            assert database.fetch_value("SELECT 2") == 2
            # A file that is not there for a moment is no reason to fail.
            secret.unlink()
            sleep(0.1)
            assert database.fetch_value("SELECT 3") == 3
            assert "using the last credentials that worked" in caplog.text
            database.close()
    finally:
        sleep(0.1)
        observer.execute(f"DROP ROLE {role}".encode())


def test_a_function_may_be_the_password(config: dict[str, Any]) -> None:
    password: str = config["connection_settings"]["password"]
    asked = []

    def token() -> str:
        asked.append(1)
        return password

    def blocking_token() -> str:
        asked.append(2)
        return password

    for provider in (token, blocking_token) if POOL_KIND == "pool" else (blocking_token,):
        config["connection_settings"]["password"] = provider
        database = Database(pools(config))
        assert database.fetch_value("SELECT 1") == 1
        assert asked
        asked.clear()
        database.close()
