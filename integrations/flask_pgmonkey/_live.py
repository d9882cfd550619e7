"""The page that shows the pools of all worker processes."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, current_app
from flask.typing import ResponseReturnValue

from pgmonkey import Database, telemetry

from ._database import EXTENSION


def live_blueprint(require: Callable[[], ResponseReturnValue | None], url_prefix: str) -> Blueprint:
    """Return the blueprint of the page, before which *require* is called."""
    blueprint = Blueprint("pgmonkey_live", __name__, url_prefix=url_prefix)
    blueprint.before_request(require)
    blueprint.get("/")(_page)
    return blueprint


def _page() -> ResponseReturnValue:
    databases: dict[str | None, Database[object]] = current_app.extensions[EXTENSION]
    names = {database.pool_name for database in databases.values()}
    return telemetry.page(names), {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
