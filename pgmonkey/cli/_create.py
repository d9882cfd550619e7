"""``pgmonkey pgconfig create``: write a configuration file to start from."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from importlib import resources
from pathlib import Path

from .._config.document import is_like_url
from .._config.json_schema import json_schema
from .._config.keywords import PORTS, POSITIVE, is_written
from ..errors import ConfigError
from ._given import path_of

# What is asked in a terminal, and what serves where nothing is answered.
_QUESTIONS = {
    "host": ("Host", "127.0.0.1"),
    "port": ("Port", "5432"),
    "user": ("User", "postgres"),
    "dbname": ("Database", "postgres"),
}
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
_SETTLED = ("connection_type", "max_size", "full", "url", *_QUESTIONS)


def run(options: argparse.Namespace) -> int:
    """Write the file; ask for what it holds where a person is there to answer and nothing was given."""
    path = path_of(options)
    if is_like_url(path) or not path.strip():
        found = "a URL or connection string" if path.strip() else "nothing"
        raise ConfigError(f"{found} was given as the file to write; give a path with --connconfig")
    if os.path.lexists(path):
        raise ConfigError(f"{path}: the file exists already and was left as it is")
    if sys.stdin.isatty() and sys.stdout.isatty() and not any(getattr(options, name) for name in _SETTLED):
        _ask(options)
    alone = "full" if options.full else "url"
    if getattr(options, alone) and (beside := next((name for name in _QUESTIONS if getattr(options, name)), None)):
        raise ConfigError(f"--{beside} has no effect with --{alone}; leave out one of them")
    content = (_full() if options.full else _short(options)).encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        # Private, because the user may write a password into it; "x" leaves an existing file alone.
        with open(path, "xb", opener=_open_private) as stream:
            stream.write(content)
    except FileExistsError:
        raise ConfigError(f"{path}: the file exists already and was left as it is") from None
    variable = "" if options.full else f"export {'DATABASE_URL' if options.url else 'PGPASSWORD'}=..., "
    edit = "edit it, " if options.full else ""
    reference = "" if options.full else " --resolve-env"
    print(f"{path}: written; {edit}{variable}then: pgmonkey pgconfig test --connconfig {path}{reference}")
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema."""
    print(json.dumps(json_schema(), indent=2))
    return 0


def _ask(options: argparse.Namespace) -> None:
    print(
        "Press Enter to accept the value in brackets. The password is not asked for: the file will refer to a variable."
    )
    options.url = input("Is the database's URL in the variable DATABASE_URL? [no] ").lower()[:1] == "y"
    if not options.url:
        for name, (question, default) in _QUESTIONS.items():
            setattr(options, name, input(f"{question} [{default}] ").strip() or default)
    options.max_size = input("Maximum connections of each pool [10] ").strip() or 10


def _short(options: argparse.Namespace) -> str:
    size = str(10 if options.max_size is None else options.max_size)
    if not is_written(POSITIVE, size):
        raise ConfigError(f"{size!r} connections: not a whole number of at least 1 (--max-size)")
    lines = [f"connection_type: {options.connection_type or 'pool'}", "connection_settings:"]
    if options.url:
        lines.append("  conninfo: '${DATABASE_URL}'")
    else:
        for key, variable in _VARIABLES.items():
            default = "" if key == "password" else getattr(options, key) or _QUESTIONS[key][1]
            if re.search(r"[{}\s]", default):  # these end a reference, or begin another
                raise ConfigError(
                    f"--{key}: write {default!r} into the file; a default cannot contain blanks or braces"
                )
            if is_like_url(default):
                raise ConfigError(f"--{key}: a URL or connection string was given; write --url, and set DATABASE_URL")
            if key == "port" and not is_written(PORTS, default):
                raise ConfigError(f"--port: {default!r} is not a port (1 to 65535)")
            reference = f"${{{variable}}}" if key == "password" else f"${{{variable}:-{default}}}"
            lines.append("  {}: '{}'".format(key, reference.replace("'", "''")))
    for section in ("pool_settings", "async_pool_settings"):
        lines += [f"{section}:", f"  max_size: {size}"]
    return "\n".join(lines) + "\n"


def _full() -> str:
    return resources.files("pgmonkey").joinpath("cli/template.yaml").read_text(encoding="utf-8")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
