"""Our backend with django-prometheus's cursors, made as its own for PostgreSQL."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django_prometheus.db.common import DatabaseWrapperMixin, ExportingCursorWrapper

from django_pgmonkey import base


class DatabaseWrapper(DatabaseWrapperMixin, base.DatabaseWrapper):
    @cached_property
    def _counting(self) -> Any:
        # Made once, not for each connection: each is a class of its own.
        return ExportingCursorWrapper(super().get_connection_params()["cursor_factory"], self.alias, self.vendor)

    def get_connection_params(self) -> Any:
        return {**super().get_connection_params(), "cursor_factory": self._counting}

    create_cursor = base.DatabaseWrapper.create_cursor
