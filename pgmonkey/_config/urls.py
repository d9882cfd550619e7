"""Take the URL of a database apart: for libpq, for psycopg and for the pools."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from .document import is_url
from .keywords import ARGUMENTS, OURS, POOL
from .redaction import is_sensitive
from .schema import did_you_mean, libpq_keywords

_POOL = "pool_"
_POOLS = ("pool_settings", "async_pool_settings")
_ENCODE = "percent-encode what belongs to the user's name and password: '@' as %40, '/' as %2F, ':' as %3A, '%' as %25"


def with_url_apart(values: Mapping[str, object], told: dict[str, str]) -> dict[str, object]:
    """Return *values* with the URL under ``conninfo`` as libpq takes it, and what else is in its query in its place.

    ``?pool_max_size=10`` is a setting of both pools, ``?command_timeout=5`` one of ``connection_settings``.  What is
    written in these sections comes first.  *told* gets, by path, the parameters that were put in their places.  Raises
    ValueError, with a message that holds nothing of the URL's secrets.
    """
    settings = values.get("connection_settings")
    if not isinstance(settings, Mapping):
        return dict(values)
    url = settings.get("conninfo")
    if not isinstance(url, str) or not is_url(url):
        return dict(values)
    # "postgresql+psycopg" is how SQLAlchemy names its driver.
    rest, _, query = url.strip().partition("://")[2].partition("?")
    _refuse_ambiguous(rest, query)
    libpq: list[str] = []
    own: dict[str, object] = {}
    pool: dict[str, object] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        key = unquote(name)
        if key.removeprefix(_POOL) in POOL and key.startswith(_POOL):
            pool[key.removeprefix(_POOL)] = unquote(value)
            told.update((f"{section}.{key.removeprefix(_POOL)}", key) for section in _POOLS)
        elif key in (*ARGUMENTS, *OURS):
            own[key] = unquote(value)
            told[f"connection_settings.{key}"] = key
        elif key in libpq_keywords() or key == "ssl":  # libpq takes ssl=true for sslmode=require, as JDBC has it
            libpq.append(item)
        else:
            known = {
                *libpq_keywords(),
                *ARGUMENTS,
                *OURS,
                *(_POOL + each for each in POOL),
            }
            # What stands before an '@' in the query, or behind an '&', may be a part of a password.
            part = ("@" in query and "@" not in rest) or "=" not in item or any(map(is_sensitive, _names(query)))
            shown = "a parameter" if part else f"the parameter {key!r}"
            cure = _ENCODE if shown == "a parameter" else "remove it"
            raise ValueError(f"{shown} of the URL is unknown{did_you_mean(key, known) or f'; {cure}'}")
    plain = f"postgresql://{rest}{'?' if libpq else ''}{'&'.join(libpq)}"
    result = {**values, "connection_settings": {**own, **settings, "conninfo": plain}}
    if pool:
        for section in _POOLS:
            given = values.get(section)
            if given is None or isinstance(given, Mapping):
                result[section] = {**pool, **(given or {})}
    return result


def _names(query: str) -> list[str]:
    return [unquote(item.partition("=")[0]) for item in query.split("&")]


def _refuse_ambiguous(rest: str, query: str) -> None:
    """Refuse a password that is not percent-encoded: libpq would take a part of it for the host, and show that."""
    userinfo, at, place = rest.partition("@")
    if at and "/" in userinfo:  # libpq ends the user's name and password at a '/' too
        raise ValueError(f"the URL has an '@' behind a '/'; {_ENCODE}")
    if "@" in place:
        raise ValueError(f"the URL has more than one '@'; {_ENCODE}")
    if not at and ":" in rest and "/" not in rest and "@" in query:
        raise ValueError(f"the URL has an '@' behind a '?'; {_ENCODE}")
