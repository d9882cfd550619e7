"""What the checks of behaviour need: where they run, what they expect, what they found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

EMPTY: Mapping[str, Any] = {}
F = TypeVar("F", bound=Callable[..., Any])

LONG = 120
"""Characters of what a check returned that are printed."""
DSN = "PGMONKEY_TEST_DSN"
"""The environment variable that names the server; the user must be a superuser."""

SCHEMA = f"compat_{os.getpid()}"
"""Where the tables of this process are: several of them share a server."""
TABLES = """
CREATE TABLE stored (i int, t text);
CREATE TABLE reshaped (i int);
CREATE TABLE late (i int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION notice(t text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '%', t; RETURN 1; END $$;
"""


@contextmanager
def server() -> Iterator[None]:
    """Start a server, unless the environment names one."""
    if DSN in os.environ:
        yield
        return
    from pgmonkey.embedded import Server  # not on top: it is part of what is checked

    with Server() as started:
        os.environ[DSN] = started.dsn()
        yield


def conninfo() -> str:
    """Return where to connect: the schema of this process is the first that is searched."""
    return make_conninfo(os.environ[DSN], options=f"-c search_path={SCHEMA},public", application_name=SCHEMA)


def config(
    name: str,
    where: str | None = None,
    connection: Mapping[str, Any] = EMPTY,
    pool: Mapping[str, Any] = EMPTY,
    parameters: Mapping[str, str] = EMPTY,
) -> dict[str, Any]:
    """Return the configuration of a pool of one connection, for both colours."""
    settings = {"name": name, "min_size": 1, "max_size": 1, "timeout": 4, **pool}
    return {
        "connection_settings": {"conninfo": where or conninfo(), **connection},
        "pool_settings": settings,
        "async_pool_settings": settings,
        "sync_settings": parameters,
        "async_settings": parameters,
    }


_observer: psycopg.Connection[Any] | None = None


def observer() -> psycopg.Connection[Any]:
    """Return a connection of psycopg's own, in autocommit: it sees, and changes, what others have stored."""
    if _observer is None:
        raise RuntimeError("there are no tables to look at: use schema()")
    return _observer


@contextmanager
def schema() -> Iterator[None]:
    """Make the tables that the checks use, and remove them at the end."""
    global _observer
    with psycopg.connect(conninfo(), autocommit=True) as _observer:
        _observer.execute("SET client_min_messages = warning")  # or it would list what it drops
        _observer.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}; {TABLES}".encode())
        yield
        _observer.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())


class Checks:
    """The checks of one module, in the order in which they stand there, with what each is expected to return."""

    def __init__(self, module: str) -> None:
        self.prefix = "async" if "._async." in module or module.endswith(".tasks") else "sync"
        self._wanted: dict[Callable[..., Any], object] = {}

    def expects(self, wanted: object) -> Callable[[F], F]:
        """Take up the decorated function, which is to return *wanted*."""

        def take_up(function: F) -> F:
            self._wanted[function] = wanted
            return function

        return take_up

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any], object]]:
        """Return the name, the function and what is wanted, for each check."""
        for function, wanted in self._wanted.items():
            yield f"{self.prefix}.{function.__name__}", function, wanted


class Report:
    """What differs from what was expected, one word=value per check."""

    def __init__(self, only: list[str]) -> None:
        self.running = "start"
        self._differing: dict[str, str] = {}
        self._only = only

    def begins(self, name: str) -> bool:
        """Take note that the check *name* begins; return False if it was not asked for."""
        self.running = name
        return not self._only or name in self._only or name.partition(".")[2] in self._only

    def found(self, got: object, wanted: object) -> bool:
        """Take note of what the running check returned, or raised; tell whether it is what was *wanted*."""
        if isinstance(got, BaseException):
            self._differing[self.running] = one_line(got)[:LONG]
        elif got != wanted:
            self._differing[self.running] = repr(got)[:LONG]
        return self.running not in self._differing

    def __str__(self) -> str:
        return "  ".join(f"{name}={value}" for name, value in self._differing.items()) or "OK"


def one_line(error: BaseException) -> str:
    """Return the kind of *error* and its words, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
