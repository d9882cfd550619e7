"""Write the code that ``pgmonkey pgconfig generate-code`` prints: it runs unchanged and contains no secret."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from textwrap import indent
from typing import cast
from urllib.parse import unquote, urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from .._config.blueprint import startup_options
from .._config.document import is_url, read_document
from .._config.keywords import OURS
from .._config.redaction import is_sensitive, redact_text
from .._config.schema import Config, Kind
from .._config.source import load_config, written
from ..errors import ConfigError
from ..manager import Reading
from . import _webcode
from ._given import existing, flags, load

# Settings that psycopg_pool does not have, or that the code gives in another way (kwargs, open, check).
_NOT_IN_THE_POOL = (
    *("open", "check_on_checkout", "kwargs", "close_returns", "connection_class"),
    *("clean_on_return", "open_timeout", "leak_detection_threshold"),
)
# References are valid here, because the configuration was resolved before.  "$${" is none, but a "${".
_REFERENCE = re.compile(r"(?<!\$)(?:((?:\$\$)+)\{|((?:\$\$)*)\$\{([^}:]*)(?::-([^}]*))?\})")
# Private characters of Unicode stand for references.
_MARK = 0xE000
_MARKS = re.compile("[\ue000-\uf8ff]")
# A URL is not written into the code, because it may hold a password.
_URL_FROM = 'os.environ["DATABASE_URL"]'
_SYNC = """\
with {handle} as conn:
    with conn.cursor() as cur:
        cur.execute("SELECT version();")
        print(cur.fetchone())
"""
_ASYNC = """\
async with {handle} as conn:
    async with conn.cursor() as cur:
        await cur.execute("SELECT version();")
        print(await cur.fetchone())
"""
_MAIN = """\

async def main():
{body}

if __name__ == "__main__":
    asyncio.run(main())
"""


def run(options: argparse.Namespace) -> int:
    """Print the code."""
    config = load(options)
    kind: Kind = options.connection_type or config.kind
    path = existing(options)
    if options.library == "psycopg":
        print(_psycopg_code(path, kind, config, options), end="")
    elif options.framework == "script":
        print(_pgmonkey_code(path, kind, flags(options)), end="")
    else:
        config_code = _URL_FROM if is_url(path) else repr(path)
        print(_webcode.pgmonkey_code(options.framework, config_code, kind, flags(options)), end="")
    return 0


def _pgmonkey_code(path: str, kind: Kind, flags: Mapping[str, object]) -> str:
    """Return code that connects to the configuration at *path* with pgmonkey."""
    config, imports = (_URL_FROM, "import os\n\n") if is_url(path) else (repr(path), "")
    arguments = ", ".join([config, repr(kind), *(f"{name}={value!r}" for name, value in flags.items())])
    name = "pool" if kind.endswith("pool") else "connection"
    if kind in ("normal", "pool"):
        return (
            f"{imports}from pgmonkey import PGConnectionManager\n\n"
            "manager = PGConnectionManager()\n"
            f"{name} = manager.get_database_connection({arguments})\n\n" + _SYNC.format(handle=name)
        )
    body = (
        "manager = PGConnectionManager()\n"
        f"{name} = await manager.get_database_connection({arguments})\n" + _ASYNC.format(handle=name)
    ) + "await manager.clear_cache_async()\n"
    imports = "import asyncio\n" + (imports or "\n")
    return f"{imports}from pgmonkey import PGConnectionManager\n\n" + _MAIN.format(body=indent(body, "    "))


def _psycopg_code(path: str, kind: Kind, config: Config, options: argparse.Namespace) -> str:
    """Return code that connects as the configuration at *path* says, with psycopg and psycopg_pool alone."""
    is_async, pooled = kind in ("async", "async_pool"), kind in ("pool", "async_pool")
    settings = _Settings(path, is_async, config, options.resolve_env, options.profile)
    if options.framework != "script":
        pool = settings.pool_arguments("Async" if is_async else "")
        return _webcode.psycopg_code(
            options.framework, kind, settings.code, pool, settings.imports, settings.third_party
        )
    use = _ASYNC if is_async else _SYNC
    if pooled:
        prefix = "Async" if is_async else ""
        opening = f"psycopg_pool.{prefix}ConnectionPool({settings.pool_arguments(prefix)})"
        body = f"{'async ' if is_async else ''}with {opening} as pool:\n"
        body += indent(use.format(handle="pool.connection()"), "    ")
    else:
        connect = "await psycopg.AsyncConnection.connect" if is_async else "psycopg.connect"
        body = use.format(handle=f"{connect}(**settings)")
    imports = settings.imports + (["import asyncio"] if is_async else [])
    third = ["import psycopg_pool" if pooled else "import psycopg", *settings.third_party]
    # In the order of isort and ruff: the standard library first, "import" before "from".
    head = "\n".join(sorted(imports, key=lambda line: line.startswith("from"))) + ("\n\n" if imports else "")
    head += "\n".join(sorted(third)) + "\n\n" + settings.code + "\n"
    return head + (_MAIN.format(body=indent(body, "    ")) if is_async else body)


class _Settings:
    """The code ``settings = {...}``, which reads references and secrets when it runs."""

    def __init__(self, path: str, is_async: bool, config: Config, resolve_env: bool, profile: str | None) -> None:
        self.imports: list[str] = []
        self.third_party: list[str] = []
        self._pool = config.async_pool_settings if is_async else config.pool_settings
        # As written, not as resolved: *config* holds the secrets.  Its check has made sure of the types.
        self._document = written(path, profile)
        self._wrapped = "postgresql" in read_document(path).values
        raw = cast("dict[str, object]", self._document.values["connection_settings"])
        self._path = path
        self._conninfo = raw.get("conninfo")
        self._keys = frozenset(raw)
        options: Reading = {"resolve_env": resolve_env, "allow_sensitive_defaults": True, "profile": profile}
        loaded = load_config(path, **options)["connection_settings"]
        self._is_url = is_url(str(loaded.get("conninfo", "")))
        arguments = {key: value for key, value in config.arguments.items() if key not in OURS}
        behind_pgbouncer = config.arguments.get("pgbouncer", False)
        if behind_pgbouncer:
            arguments.setdefault("prepare_threshold", None)
        values = {
            key: self._expression(key, raw.get(key, value), resolve_env)
            for key, value in {**config.connect, **arguments}.items()
        }
        parameters = config.async_settings if is_async else config.sync_settings
        # PgBouncer refuses startup options; there the reader has to set the parameters.
        if parameters and not behind_pgbouncer:
            values["options"] = repr(startup_options(config.connect.get("options", ""), parameters))
        section = self._document.values.get("async_settings" if is_async else "sync_settings")
        told = ""
        if "options" in values and self._hold_a_secret(config, section if parameters else None, resolve_env):
            del values["options"]
            told = "# PGOPTIONS, which libpq reads, is to hold the options and parameters: one of them is a secret.\n"
        lines = "".join(f"    {key!r}: {value},\n" for key, value in values.items())
        reading = ""
        if "import yaml" in self.third_party:  # for a secret in the file
            reading = f'with open({path!r}, encoding="utf-8") as file:\n    document = yaml.safe_load(file)\n'
        self.code = f"{reading}{told}settings = {{\n{lines}}}\n"

    @staticmethod
    def _hold_a_secret(config: Config, parameters: object, resolve_env: bool) -> bool:
        """Tell whether the options, or the *parameters* as written that go with them, are not to be seen in code."""
        given = {**parameters} if isinstance(parameters, Mapping) else {}
        if any(is_sensitive(str(name)) for name in given):
            return True
        if resolve_env and any(isinstance(value, Mapping) or "${" in str(value) for value in given.values()):
            return True
        options = config.connect.get("options", "")
        return redact_text(options) != options

    def pool_arguments(self, prefix: str) -> str:
        """Return the arguments of psycopg_pool's pool."""
        arguments = {
            name: value
            for name, value in vars(self._pool).items()
            if name not in _NOT_IN_THE_POOL and value is not None and not callable(value)
        }
        parts = ["kwargs=settings", *(f"{name}={value!r}" for name, value in arguments.items())]
        if prefix:
            # psycopg_pool warns of an async pool that opens in its constructor; ``async with`` opens it.
            parts.append("open=False")
        if self._pool.check_on_checkout:
            parts.append(f"check=psycopg_pool.{prefix}ConnectionPool.check_connection")
        return ", ".join(parts)

    def _in_file(self, key: str) -> str:
        """Return the expression for what is written under *key*, perhaps in a profile or in the old wrapper."""
        path, in_profile = f"connection_settings.{key}", ""
        place = self._document.names.get(path, self._document.names.get("connection_settings", path))
        if place.startswith("profiles."):
            in_profile = place.removeprefix("profiles.").partition(".connection_settings")[0]
        steps = [*(["postgresql"] if self._wrapped else []), *(["profiles", in_profile] if in_profile else [])]
        return "document" + "".join(f"[{step!r}]" for step in (*steps, "connection_settings", key))

    def _need(self, imports: list[str], line: str) -> None:
        if line not in imports:
            imports.append(line)

    def _expression(self, key: str, value: object, resolve_env: bool) -> str:
        if resolve_env and isinstance(value, Mapping):
            kind, target = next(iter(value.items()))
            self._need(self.imports, "import os" if kind == "from_env" else "from pathlib import Path")
            if kind == "from_env":
                return f"os.environ[{target!r}]"
            target = os.path.join(os.path.dirname(self._path), str(target))
            # Without the newline at the end, as pgmonkey reads it.
            return f'Path({target!r}).read_text(encoding="utf-8-sig").removesuffix("\\n")'
        # What comes from the connection string is resolved: a "${" in it is none to be replaced.
        if resolve_env and key in self._keys and isinstance(value, str) and "${" in value:
            self._need(self.imports, "import os")
            return self._interpolated(value)
        if is_sensitive(key) and isinstance(self._conninfo, str) and key not in self._keys:
            return self._part(key, self._conninfo, resolve_env)
        if is_sensitive(key):
            self._need(self.third_party, "import yaml")
            return self._in_file(key)
        return repr(value)

    def _part(self, key: str, conninfo: str, resolve_env: bool) -> str:
        """Return the expression for the secret *key* that is a part of a connection string."""
        if is_url(self._path):
            self._need(self.imports, "import os")
            source = _URL_FROM
        elif resolve_env and "${" in conninfo:
            if not _REFERENCE.fullmatch(conninfo):
                return self._assembled(key, conninfo)
            self._need(self.imports, "import os")
            source = self._interpolated(conninfo)
        else:
            self._need(self.third_party, "import yaml")
            source = self._in_file("conninfo")
        if key == "password" and self._is_url:
            # Not psycopg's function, which refuses the parameters that only pgmonkey knows.
            self._need(self.imports, "from urllib.parse import unquote, urlsplit")
            return f'unquote(urlsplit({source}).password or "")'
        self._need(self.third_party, "from psycopg.conninfo import conninfo_to_dict")
        return f"conninfo_to_dict({source})[{key!r}]"

    def _assembled(self, key: str, conninfo: str) -> str:
        """Return the expression for the secret *key* in a connection string of several references.

        Each is a value, or a part of one: pgmonkey escapes it so that it comes out as it went in.
        """
        references: list[str] = []

        def mark(match: re.Match[str]) -> str:
            references.append(match[0])
            return chr(_MARK + len(references) - 1)

        marked = _REFERENCE.sub(mark, conninfo)
        try:
            if key == "password" and self._is_url:
                part = unquote(urlsplit(marked).password or "")
            else:
                part = str(conninfo_to_dict(marked)[key])
        except (ProgrammingError, ValueError, KeyError):
            part = ""
        if not _MARKS.search(part):  # the whole of it is a part of a reference, or stands in the file
            raise ConfigError(
                f"{self._path}: code for psycopg needs {key!r} in 'conninfo' to be a reference of its own, "
                "or 'conninfo' to be one, or separate keys"
            )
        self._need(self.imports, "import os")
        return self._interpolated(_MARKS.sub(lambda match: references[ord(match[0]) - _MARK], part))

    @staticmethod
    def _interpolated(text: str) -> str:
        parts = [""]
        end = 0
        for match in _REFERENCE.finditer(text):
            escaped, dollars, name, default = match.groups()
            parts[-1] += text[end : match.start()] + (f"{escaped[::2]}{{" if escaped else dollars[::2])
            end = match.end()
            if not escaped:
                # Set to nothing is as good as not set, where there is a default.
                value = f"os.environ[{name!r}]" if default is None else f"(os.environ.get({name!r}) or {default!r})"
                parts += [value, ""]
        parts[-1] += text[end:]
        texts = (repr(part) if i % 2 == 0 else part for i, part in enumerate(parts) if part)
        return " + ".join(texts)
