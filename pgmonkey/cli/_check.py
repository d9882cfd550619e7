"""``pgmonkey pgconfig check``: look for mistakes in a configuration without connecting."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from .._config.document import Document, read_document, shown
from .._config.keywords import KEYWORDS, PLAIN, PROFILES
from .._config.redaction import is_sensitive, redact_text
from .._config.schema import Config, check
from .._config.source import prepare, written
from ..errors import ConfigError, EnvInterpolationError
from ._given import existing
from ._terminal import documentation, paint

# What is wrong with a reference in this environment, and may be right in another.
_HERE = re.compile(r"is not set|variable \S+ is empty|is not UTF-8 text|cannot read the secret file")
_WEAK = ("disable", "allow", "prefer")
_MILLISECONDS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")


@dataclass
class Findings:
    """What is wrong, which names are misspelt, and what is probably not meant.

    ``config`` is None where something is wrong.
    """

    document: Document
    errors: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config: Config | None = None


def run(options: argparse.Namespace) -> int:
    """Print what was found, one line each; return 1 where something is wrong."""
    path = existing(options)
    found = Findings(Document(shown(path), {}))
    for profile in [options.profile] if options.profile is not None else _profiles(path):
        each = examine(path, options.resolve_env, options.allow_sensitive_defaults, profile)
        if each.config is not None:
            each.warnings += _contradictions(each.document, each.config)
        each.warnings += _exposed(each.document)
        for name in ("errors", "unknown", "warnings"):
            getattr(found, name).extend(text for text in getattr(each, name) if text not in getattr(found, name))
    for colour, word, lines in (
        ("red", "error", [*found.errors, *found.unknown]),
        ("yellow", "warning", found.warnings),
    ):
        for line in sorted(lines, key=_line):
            print(f"{paint(colour, word, sys.stdout)}: {line}")
    failed = bool(found.errors or found.unknown or (options.strict and found.warnings))
    counts = ", ".join(
        f"{len(lines)} {word}{'s' if len(lines) > 1 else ''}"
        for word, lines in (("error", [*found.errors, *found.unknown]), ("warning", found.warnings))
        if lines
    )
    rest = f"; see {documentation('configuration.md')}" if counts else ""
    print(f"{paint('red' if failed else 'green', found.document.source, sys.stdout)}: {counts or 'no mistakes'}{rest}")
    return int(failed)


def _line(text: str) -> int:
    number = re.search(r":(\d+): ", text)
    return int(number[1]) if number else 0


def _profiles(path: str) -> list[str | None]:
    """Return which profiles there are to check; None for what is used when none is chosen."""
    try:
        document = read_document(path)
    except ConfigError:  # to be told by who checks it
        return [None]
    profiles = document.values.get(PROFILES)
    names: list[str | None] = [*profiles] if isinstance(profiles, Mapping) else []
    alone = not names or "default" in names or document.values.get("connection_settings") is not None
    return ([None] if alone else []) + [name for name in names if name != "default"]


def examine(path: str, resolve_env: bool, allow_sensitive_defaults: bool, profile: str | None) -> Findings:
    """Check the configuration at *path*; find all that is wrong rather than the first of it.

    Without *resolve_env* references are looked at, but what they stand for is not known and not checked.
    """
    found = Findings(Document(shown(path), {}))
    try:
        with _heard(found):
            document = written(path, profile)
    except ConfigError as error:
        found.errors.append(str(error))
        return found
    found.document = document
    with _heard(found):
        if not resolve_env:
            found.errors += _broken_references(document, allow_sensitive_defaults)
            document = replace(document, values=_without_references(document.values))
        found.config = _until_right(document, found, lambda each: prepare(each, resolve_env, allow_sensitive_defaults))
    if found.errors:
        found.config = None
    return found


def _until_right(document: Document, found: Findings, prepared: Callable[[Document], Document]) -> Config | None:
    """Check *document* again without what was wrong, until nothing is; collect what was."""
    while True:
        try:
            return check(prepared(document))
        except ConfigError as error:
            found.errors.append(str(error))
            rest = _without(document, str(error))
            if rest is None:
                return None
            document = rest


def _without(document: Document, message: str) -> Document | None:
    """Return *document* without the key that *message* is about; None where that cannot be told, or is all of it."""
    for section, value in document.values.items():
        keys = [str(key) for key in value] if isinstance(value, Mapping) else []
        for key in sorted(keys, key=len, reverse=True):
            if message.startswith(document.where(f"{section}.{key}")):
                rest = {name: item for name, item in cast("Mapping[str, object]", value).items() if name != key}
                return replace(document, values={**document.values, section: rest})
    for section in document.values.keys() - {"connection_settings"}:
        if message.startswith(f"{document.where(section)}: "):
            return replace(document, values={k: v for k, v in document.values.items() if k != section})
    return None


@contextmanager
def _heard(found: Findings) -> Iterator[None]:
    """Collect what the configuration logs: an unknown key is an error here, and the old wrapper worth a warning."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            # A section that resembles none of ours is somebody else's.
            wrong = "unknown key" in str(record.msg) or "did you mean" in text
            into = found.unknown if wrong else found.warnings
            if text not in into:
                into.append(text)

    logger = logging.getLogger("pgmonkey")
    collector, propagate = Collector(), logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(collector)
    found.warnings += dict.fromkeys(str(each.message) for each in caught)


# -- references -------------------------------------------------------------------------------------------------------


def _is_reference(value: object) -> bool:
    return (isinstance(value, str) and "${" in value) or (
        isinstance(value, Mapping) and ("from_env" in value or "from_file" in value)
    )


def _without_references(value: Any) -> Any:
    """Return *value* with None for each reference: the key is there, and what it holds is not known."""
    if _is_reference(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_references(item) for key, item in value.items()}
    return value


def _broken_references(document: Document, allow_sensitive_defaults: bool) -> list[str]:
    """Return what is wrong with the references as they are written, whatever variables and files hold."""
    errors: list[str] = []
    rest: Document | None = document
    while rest is not None:
        try:
            prepare(rest, True, allow_sensitive_defaults)
            break
        except EnvInterpolationError as error:
            if not _HERE.search(str(error)):
                errors.append(str(error))
            rest = _without(rest, str(error))
        except ConfigError:  # of what a reference stands for here
            break
    return errors


# -- what is allowed, and probably not meant --------------------------------------------------------------------------


def _contradictions(document: Document, config: Config) -> Iterator[str]:
    """Yield what is written in two ways, or has no effect beside something else."""
    connect = config.connect
    hosts = connect.get("host", os.environ.get("PGHOST", "")).split(",")
    sslmode = connect.get("sslmode") or os.environ.get("PGSSLMODE", "prefer")

    def say(key: str, problem: str, section: str = "connection_settings") -> str:
        return f"{document.where(f'{section}.{key}')}: {problem}"

    if sslmode in _WEAK and "service" not in connect and any(map(_is_remote, hosts)):
        written = repr(sslmode) if "sslmode" in connect else f"{sslmode!r}, the default,"
        yield say(
            "sslmode" if "sslmode" in connect else "host",
            f"sslmode {written} allows a remote connection to be read and altered; use 'verify-full' with sslrootcert",
        )
    if sslmode in _WEAK and connect.get("sslrootcert"):
        yield say("sslrootcert", f"with sslmode {sslmode!r} no certificate is verified; use 'verify-full'")
    if sslmode == "disable" and connect.get("channel_binding") == "require":
        yield say("channel_binding", "there is no channel to bind to with sslmode 'disable'")
    for one, other in (("sslcert", "sslkey"), ("sslkey", "sslcert")):
        if connect.get(one) and not connect.get(other):
            yield say(one, f"a client certificate needs both sslcert and sslkey; {other} is missing")
    for key in ("hostaddr", "port"):
        count = len(connect.get(key, "").split(","))
        if connect.get("host") and count > 1 and count != len(hosts):
            yield say(key, f"{count} values for {len(hosts)} hosts; give one for each")
    given = document.values.get("connection_settings")
    if isinstance(given, Mapping) and given.get("conninfo"):
        for key in sorted(given.keys() & {"host", "port", "dbname", "user", "hostaddr"}):
            yield say(key, "overrides conninfo; give it in one place")
    for section in ("sync_settings", "async_settings"):
        for key, value in getattr(config, section).items():
            if key in _MILLISECONDS and value.isdecimal() and 0 < int(value) < 100:
                yield say(key, f"{value} means milliseconds; for seconds write '{value}s'", section)
    for section, pool in (("pool_settings", config.pool_settings), ("async_pool_settings", config.async_pool_settings)):
        written_here = document.values.get(section)
        if isinstance(written_here, Mapping) and "max_idle" in written_here and pool.max_idle > pool.max_lifetime:
            yield say("max_idle", f"has no effect above max_lifetime ({pool.max_lifetime:g} s)", section)


def _is_remote(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost" or "${" in host:
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _exposed(document: Document) -> Iterator[str]:
    """Yield which secrets others can read: in the file itself, and in those that it names."""
    connection = document.values.get("connection_settings")
    if not document.lines or not isinstance(connection, Mapping):
        return
    literal = [key for key, value in connection.items() if _holds_a_secret(str(key), value)]
    for key in literal:
        place = document.where(f"connection_settings.{key}")
        if _readable_by_all(document.source):
            yield f"{place}: contains a secret and is world-readable: chmod 600, or use '${{VARIABLE}}'"
        if _tracked_by_git(document.source):
            yield f"{place}: contains a secret and is tracked by git: use '${{VARIABLE}}', and change the secret"
    for key, value in connection.items():
        name = (
            value.get("from_file") if isinstance(value, Mapping) else value if key in ("sslkey", "passfile") else None
        )
        if not isinstance(name, str) or not name or "${" in name:
            continue
        path = os.path.join(document.folder, name) if isinstance(value, Mapping) else name
        place = document.where(f"connection_settings.{key}")
        if _readable_by_all(path):
            yield f"{place}: {path} is world-readable: chmod 600"
        if _tracked_by_git(path):
            yield f"{place}: {path} is tracked by git: remove it, and change the secret"


def _holds_a_secret(key: str, value: object) -> bool:
    if not isinstance(value, (str, int)) or value == "" or _is_reference(value):
        return False
    if key in ("conninfo", "dsn"):
        return redact_text(str(value)) != str(value)
    return is_sensitive(key) and KEYWORDS.get(key, PLAIN).holds != "path"


def _readable_by_all(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH) and os.name == "posix"
    except OSError:
        return False


def _tracked_by_git(path: str) -> bool:
    folder, name = os.path.split(os.path.abspath(path))
    # No program that the repository names may run, and no lock is taken.
    command = [
        "git",
        "--no-optional-locks",
        "-c",
        "core.fsmonitor=false",
        "-C",
        folder,
        "ls-files",
        "--error-unmatch",
        name,
    ]
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):  # there is no git here
        return False
