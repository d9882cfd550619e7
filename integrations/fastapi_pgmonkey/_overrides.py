"""Overrides of the dependencies of a `PGMonkey`, which hold for the aliases, too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import FastAPI

from ._types import RequestDatabases

OVERRIDDEN_BY: dict[Any, str] = {}
"""The dependency of each alias, and the attribute of the `PGMonkey` by which applications override it."""

# What was set here, by the application and the dependency: all else an application has set itself.
_followed: WeakKeyDictionary[FastAPI, dict[object, object]] = WeakKeyDictionary()


def follow_overrides(app: FastAPI, databases: Collection[RequestDatabases]) -> None:
    """Let what *app* overrides ``db.database`` with, and so on, override the alias, too.

    FastAPI looks an alias up by its own function: which database it stands for is known in a request only.
    """
    if len(databases) != 1:
        return
    (pgmonkey,) = databases
    overrides, followed = app.dependency_overrides, _followed.setdefault(app, {})
    for alias, name in OVERRIDDEN_BY.items():
        if overrides.get(alias) is not followed.get(alias):
            continue
        override = followed[alias] = overrides.get(getattr(pgmonkey, name))
        if override is not None:
            overrides[alias] = override
        else:
            overrides.pop(alias, None)
