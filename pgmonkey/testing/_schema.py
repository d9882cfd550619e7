"""What is in a template database: how it is loaded, and a hash of all that decides what that gives."""

from __future__ import annotations

import hashlib
import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Schema:
    """How a new database gets its tables and its first rows.

    *load* is called with the address of an empty database.  *key* changes when what it loads does: the database is made
    once for each key.  `sql_files`, `function`, `command` and `django_migrations` make one; they can be added up.
    """

    load: Callable[[str], None]
    key: str

    def __add__(self, other: Schema) -> Schema:
        def both(dsn: str) -> None:
            self.load(dsn)
            other.load(dsn)

        return Schema(both, f"{self.key}+{other.key}")


def sql_files(*paths: PathLike) -> Schema:
    """Load SQL files, one after the other; a folder stands for the files ``*.sql`` in it, by name."""
    files = [file for path in map(Path, paths) for file in (sorted(path.glob("*.sql")) if path.is_dir() else [path])]
    texts = [file.read_bytes() for file in files]

    def load(dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for file, text in zip(files, texts, strict=True):
                try:
                    connection.execute(text)
                except psycopg.Error as error:
                    raise type(error)(f"{file}: {error}") from None

    return Schema(load, _digest(texts))


def function(load: Callable[[str], object], *, depends: Iterable[PathLike] = ()) -> Schema:
    """Call *load* with the address of the database.

    It is called again when its source changes, or that of the files and folders in *depends*, such as ``models.py``.
    """

    def called(dsn: str) -> None:
        load(dsn)

    try:
        source = inspect.getsource(load)
    except (OSError, TypeError):
        source = repr(load)
    return Schema(called, _digest([source.encode(), *_contents(depends)]))


def command(arguments: str | Sequence[str], *, depends: Iterable[PathLike], variable: str = "DATABASE_URL") -> Schema:
    """Run a command of a migration tool, such as ``alembic upgrade head``.

    The address of the database is in its environment, under the name *variable*, and psql's own variables are set, too.
    It runs again when the files and folders in *depends* change, such as ``migrations``.
    """
    words = shlex.split(arguments) if isinstance(arguments, str) else list(arguments)

    def load(dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "dbname"}
        environ = {name: str(parts[key]) for name, key in names.items() if parts.get(key) is not None}
        run = subprocess.run(
            words,
            env={**os.environ, **environ, variable: dsn},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with status {run.returncode}:\n{run.stdout.strip()}")

    return Schema(load, _digest([*(word.encode() for word in words), variable.encode(), *_contents(depends)]))


def django_migrations(settings: str, *, depends: Iterable[PathLike]) -> Schema:
    """Run ``manage.py migrate`` with the settings module *settings*, whose database is the template meanwhile.

    The settings have to take the address from the environment: its parts are in psql's variables (``PGHOST``,
    ``PGPORT``, ``PGUSER``, ``PGPASSWORD``, ``PGDATABASE``), and the whole is in ``DATABASE_URL``.
    """
    arguments = [sys.executable, "-m", "django", "migrate", "--noinput", "--verbosity=0", f"--settings={settings}"]
    return command(arguments, depends=depends)


def _contents(paths: Iterable[PathLike]) -> list[bytes]:
    found: list[bytes] = []
    for path in map(Path, paths):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.suffix != ".pyc":
                found += [str(file.relative_to(path)).encode() if path.is_dir() else b"", file.read_bytes()]
    return found


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


EMPTY = Schema(lambda dsn: None, "empty")
