"""The counters of a pool."""

from __future__ import annotations

from typing import Any

from pgmonkey import Database

from ..configs import pools


def test_a_connection_that_upkeep_looks_at_is_available(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=2))
    leases = [database.borrow(), database.borrow()]
    assert database.stats()["pool_available"] == 0
    for lease in leases:
        lease.finish()
    seen: list[int] = []

    def arrived(milliseconds: int) -> bool:
        seen.append(database.stats()["pool_available"])
        return False

    pool = database._pool()._pool
    for pooled in pool._connected():
        pooled.arrived = arrived
    pool.shrink()
    assert seen == [2, 2]
    database.close()
