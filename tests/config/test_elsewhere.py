"""What libpq finds in the environment and in a service file comes before pgmonkey's own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgmonkey import Database, PGConnectionManager
from pgmonkey._config.blueprint import blueprint

SERVICE = """
[shop]
options=-c work_mem=9MB
connect_timeout=3
keepalives_idle=77
tcp_user_timeout=5000
"""


@pytest.fixture
def service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "services.conf"
    path.write_text(SERVICE)
    monkeypatch.setenv("PGSERVICEFILE", str(path))
    return path


def connect(settings: dict[str, Any], **sections: Any) -> Any:
    config = PGConnectionManager().load({"connection_settings": settings, **sections})
    return blueprint(config, "pool").connect


@pytest.mark.parametrize("named_by", ["key", "variable"])
def test_a_services_time_limits_are_used(named_by: str, service_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"service": "shop"} if named_by == "key" else {}
    if named_by == "variable":
        monkeypatch.setenv("PGSERVICE", "shop")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    found = connect(settings)
    assert (found["connect_timeout"], found["keepalives_idle"], found["tcp_user_timeout"]) == ("3", "77", "5000")
    assert found["keepalives_interval"] == "10", "which the service says nothing of"
    assert connect({**settings, "connect_timeout": 5})["connect_timeout"] == "5", "the configuration comes first"


def test_the_environments_time_limit_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert connect({})["connect_timeout"] == "4"
    monkeypatch.delenv("PGCONNECT_TIMEOUT")
    assert connect({})["connect_timeout"] == "10"


def test_a_service_that_is_not_there_is_left_to_libpq(service_file: Path) -> None:
    assert connect({"service": "nope"})["connect_timeout"] == "10"


@pytest.mark.parametrize("sections", [{}, {"sync_settings": {"jit": "off"}}])
def test_options_are_joined(
    sections: dict[str, Any],
    config: dict[str, Any],
    service_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config["connection_settings"]
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=4321")
    shown = "SELECT current_setting('statement_timeout'), current_setting('work_mem'), current_setting('jit')"
    jit = "off" if sections else "on"
    for more, expected in (
        ({}, ("4321ms", "4MB", jit)),
        ({"service": "shop"}, ("0", "9MB", jit)),  # libpq takes one or the other
        ({"options": "-c work_mem=8MB"}, ("0", "8MB", jit)),
    ):
        database = Database({**config, **sections, "connection_settings": {**settings, **more}})
        assert database.fetch_one(shown) == expected
        database.close()


def test_kwargs_come_first_and_their_options_are_joined() -> None:
    kwargs = {"options": "-c geqo=off", "password": "new", "connect_timeout": 7, "prepare_threshold": 1}
    document = {
        "connection_settings": {
            "options": "-c jit=on",
            "password": "old",
            "connect_timeout": 5,
            "prepare_threshold": 9,
        },
        "sync_settings": {"jit": "off"},
        "pool_settings": {"kwargs": kwargs},
    }
    made = blueprint(PGConnectionManager().load(document), "pool")
    assert {key: made.connect[key] for key in kwargs} == {**kwargs, "options": "-c geqo=off -c jit=off"}
    assert made.credentials == {"password": "new"}, "which each new connection is made with"
