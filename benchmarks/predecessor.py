"""pgmonkey 4.0.0, the predecessor: in an environment of its own, because it has the same name, beside psycopg there.

Its Python runs this file as a script; the other one reads what that prints.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

_REFERENCE = "psycopg, held open"


def table(dsn: str) -> list[str]:
    """Return a table; nothing where the environment does not name the other Python."""
    python = os.environ.get("BENCHMARK_PREDECESSOR")
    if python is None:
        return []
    run = subprocess.run([python, "-I", __file__, dsn], capture_output=True, text=True, check=True)
    medians: dict[str, float] = json.loads(run.stdout)
    lines = ["### pgmonkey 4.0.0: SELECT 1", "", "| | |", "|---|---|"]
    for name, seconds in medians.items():
        lines.append(f"| {name} | {seconds * 1e6:.0f} µs, **{seconds / medians[_REFERENCE]:.2f}** |")
    return [*lines, ""]


def _measure(dsn: str) -> dict[str, float]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from pgmonkey import PGConnectionManager

    parts: dict[str, Any] = conninfo_to_dict(dsn)
    keywords = ("user", "password", "host", "port", "dbname")
    settings = {"connection_settings": {key: str(parts[key]) for key in keywords}, "pool_settings": {"min_size": 8}}
    manager: Any = PGConnectionManager()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(settings, file)  # which is YAML, too
        file.flush()
        held = psycopg.connect(dsn, autocommit=True)
        pool = manager.get_database_connection(file.name, "pool")
        single = manager.get_database_connection(file.name, "normal")

        def borrow(handle: Any) -> object:
            with handle as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return cursor.fetchone()

        ways: dict[str, tuple[int, Callable[[], object]]] = {
            _REFERENCE: (1000, lambda: held.execute("SELECT 1").fetchone()),
            "its pool": (1000, lambda: borrow(pool)),
            "its pool, asked for each time": (200, lambda: borrow(manager.get_database_connection(file.name, "pool"))),
            "its `normal` connection": (100, lambda: borrow(single)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(8):
            for name, (calls, function) in ways.items():
                started = time.perf_counter()
                for _ in range(calls):
                    function()
                times[name] += [(time.perf_counter() - started) / calls] if turn else []
        held.close()
        manager.clear_cache()
    return {name: statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1])))
