"""``pgmonkey pgconfig dsn``, ``env`` and ``psql``: the same database for other programs."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from itertools import zip_longest
from urllib.parse import quote

from psycopg import pq
from psycopg.conninfo import make_conninfo

from .._config.keywords import KEYWORDS, PLAIN
from .._config.redaction import is_sensitive, redact_text
from ..errors import ConfigError
from ._given import load


def dsn(options: argparse.Namespace) -> int:
    """Print a URL; the password only when it is asked for."""
    settings = _settings(options)
    print(_url(settings if options.with_password else _without_secrets(settings), options.driver))
    return 0


def env(options: argparse.Namespace) -> int:
    """Print the variables of libpq for a shell, or run a command that has them."""
    settings = _settings(options)
    command = _words(options)
    if command:
        _execute(command, {**_variables(settings), "DATABASE_URL": _url(settings)})
    for name, value in _variables(settings if options.with_password else _without_secrets(settings)).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def psql(options: argparse.Namespace) -> int:
    """Replace this process with psql."""
    settings = _settings(options)
    known = _variable_names()
    # Other users can see what is written as an argument, so that a secret without a variable is left out: psql asks.
    rest = {key: value for key, value in _without_secrets(settings).items() if key not in known}
    arguments = ["--dbname", make_conninfo(**rest)] if rest else []
    _execute(["psql", *arguments, *_words(options)], _variables(settings))
    return 0


def _settings(options: argparse.Namespace) -> Mapping[str, str]:
    """Return what libpq is to be given; raise `ConfigError` where that is a reference, as no other tool knows it."""
    config = load(options)
    for key, value in config.connect.items():
        if "${" in value and not options.resolve_env:
            raise ConfigError(f"{config.source}: {key} is a reference; pass --resolve-env to resolve it")
    return config.connect


def _words(options: argparse.Namespace) -> list[str]:
    words: list[str] = options.words
    return words[1:] if words[:1] == ["--"] else words


def _without_secrets(settings: Mapping[str, str]) -> dict[str, str]:
    # The path of a secret has to be known to who reads the file.  The options may set a parameter that is one.
    return {
        key: value
        for key, value in settings.items()
        if (not is_sensitive(key) or KEYWORDS.get(key, PLAIN).holds == "path") and redact_text(value) == value
    }


def _variable_names() -> dict[str, str]:
    return {option.keyword.decode(): option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    names = _variable_names()
    return {names[key]: value for key, value in settings.items() if key in names}


def _url(settings: Mapping[str, str], driver: str | None = None) -> str:
    """Return the URL of a database ("Connection URIs" in libpq's manual), for several hosts, too."""
    rest = dict(settings)
    user, password, dbname = (quote(rest.pop(key, ""), safe="") for key in ("user", "password", "dbname"))
    hosts, ports = (rest.pop(key, "").split(",") for key in ("host", "port"))
    if len(ports) == 1:
        ports *= len(hosts)
    places = (
        (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
        for host, port in zip_longest(hosts, ports, fillvalue="")
    )
    login = f"{user}{':' if password else ''}{password}{'@' if user or password else ''}"
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in rest.items())
    scheme = f"postgresql+{driver}" if driver else "postgresql"
    return f"{scheme}://{login}{','.join(places)}/{dbname}{'?' if query else ''}{query}"


def _execute(command: list[str], variables: Mapping[str, str]) -> None:
    """Replace this process with *command*; raise `ConfigError` where there is no such program."""
    try:
        os.execvpe(command[0], command, {**os.environ, **variables})  # noqa: S606  # no shell, which is as wanted
    except FileNotFoundError:
        cure = ": install PostgreSQL's client programs" if command[0] == "psql" else ""
        raise ConfigError(f"there is no program {command[0]!r} on the PATH{cure}") from None
