"""The page that shows the pools of all worker processes, as ``pgmonkey top`` does.

``path("pgmonkey/", live.page(staff_member_required))``
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from pgmonkey import AsyncDatabase, telemetry

from ._settings import literal
from ._wrapper import PooledWrapper

View = Callable[[HttpRequest], HttpResponseBase]


def page(require: Callable[[View], View]) -> View:
    """Return the page as a view, in the decorator *require*, which says who may see it: ``staff_member_required``.

    Pools are shown whose configuration says ``live_view: true``.
    """
    return require(_page)


def _page(request: HttpRequest) -> HttpResponse:
    names = set()
    for wrapper in connections.all():
        if isinstance(wrapper, PooledWrapper):
            config = literal(wrapper.settings.config(wrapper.timezone_name))
            names |= {wrapper.pool_name, AsyncDatabase(config, resolve_env=True).pool_name}
    return HttpResponse(telemetry.page(names), headers={"Cache-Control": "no-store"})
