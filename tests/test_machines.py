"""State machines: whatever is done in whatever order, the pool's and the cache's accounts are right."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgmonkey import ConnectionHandle, GivenBackError, Lease, PGConnectionManager, PoolTimeoutError

FEW = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LARGEST = 3


class Pool(RuleBasedStateMachine):
    """Borrowers who finish, fail, forget, lose their connection, or use what is no longer theirs."""

    leases = Bundle("leases")
    config: dict[str, Any]
    observer: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        pool = {"min_size": 0, "max_size": LARGEST, "timeout": 0.02}
        self.manager = PGConnectionManager()
        self.handle = self.manager.get_database_connection_from_dict({**self.config, "pool_settings": pool}, "pool")
        self.observer.execute("TRUNCATE t")
        self.written: set[int] = set()
        self.open: dict[int, set[int]] = {}
        self.pids: dict[int, int] = {}
        self.keys = itertools.count()

    @precondition(lambda self: len(self.open) < LARGEST)
    @rule(target=leases)
    def borrow(self) -> Lease:
        lease = self.handle.borrow()
        self.open[id(lease)] = set()
        self.pids[id(lease)] = lease.connection.info.backend_pid
        assert len({self.pids[number] for number in self.open}) == len(self.open)
        return lease

    @precondition(lambda self: len(self.open) == LARGEST)
    @rule()
    def borrow_one_too_many(self) -> None:
        with pytest.raises(PoolTimeoutError):
            self.handle.borrow()

    @rule(lease=leases)
    def write(self, lease: Lease) -> None:
        key = next(self.keys)
        lease.connection.execute("INSERT INTO t VALUES (%s)", [key])
        lease.connection.execute("SELECT set_config('search_path', 'elsewhere, public', false)")
        self.open[id(lease)].add(key)

    @rule(lease=consumes(leases))
    def finish(self, lease: Lease) -> None:
        connection = lease.connection
        lease.finish()
        self.written |= self.open.pop(id(lease))
        with pytest.raises(GivenBackError):
            connection.execute("SELECT 1")
        lease.finish()  # once more does nothing

    @rule(lease=consumes(leases))
    def fail(self, lease: Lease) -> None:
        lease.finish(ZeroDivisionError())
        del self.open[id(lease)]

    @rule(lease=consumes(leases))
    def abandon(self, lease: Lease) -> None:
        lease.abandon()
        del self.open[id(lease)]

    @rule(lease=consumes(leases))
    def lose(self, lease: Lease) -> None:
        self.observer.execute("SELECT pg_terminate_backend(%s, 5000)", [self.pids[id(lease)]])
        with pytest.raises(psycopg.OperationalError):
            lease.connection.execute("SELECT 1")
        lease.finish(ZeroDivisionError())
        del self.open[id(lease)]

    @rule()
    def lose_all_that_are_idle(self) -> None:
        self.observer.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND NOT pid = ANY(%s)",
            [[self.pids[number] for number in self.open]],
        )

    @invariant()
    def accounts_are_right(self) -> None:
        stats = self.handle.stats()
        assert stats["pool_size"] - stats["pool_available"] == len(self.open)
        assert stats["pool_size"] <= LARGEST
        assert stats["requests_waiting"] == 0

    @invariant()
    def what_was_committed_is_there_and_nothing_else(self) -> None:
        assert {row[0] for row in self.observer.execute("SELECT a FROM t").fetchall()} == self.written

    def teardown(self) -> None:
        self.handle.terminate()


def test_the_pool(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    observer.execute("CREATE TABLE t (a int)")
    machine = type("Pool", (Pool,), {"config": config, "observer": observer})
    run_state_machine_as_test(machine, settings=FEW)


class Cache(RuleBasedStateMachine):
    """Managers that get, get anew, let go and are forgotten."""

    managers = Bundle("managers")
    config: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.configs = [
            {**self.config, "connection_settings": {**self.config["connection_settings"], "application_name": name}}
            for name in ("one", "two")
        ]
        self.held: dict[int, dict[int, list[ConnectionHandle]]] = {}
        self.current: dict[int, ConnectionHandle] = {}
        self.made: list[PGConnectionManager] = []

    @rule(target=managers)
    def make(self) -> PGConnectionManager:
        manager = PGConnectionManager()
        self.made.append(manager)
        self.held[id(manager)] = {0: [], 1: []}
        return manager

    @rule(manager=managers, number=st.integers(0, 1), fresh=st.booleans())
    def get(self, manager: PGConnectionManager, number: int, fresh: bool) -> None:
        known = self.current.get(number)
        handle = manager.get_database_connection_from_dict(self.configs[number], "pool", force_reload=fresh)
        if not fresh and known is not None and self._holders(known):
            assert handle is known
        else:
            assert handle is not known
        self.current[number] = handle
        self.held[id(manager)][number] = [handle]

    @rule(manager=managers)
    def let_go(self, manager: PGConnectionManager) -> None:
        manager.clear_cache()
        self.held[id(manager)] = {0: [], 1: []}

    @rule(manager=consumes(managers))
    def forget(self, manager: PGConnectionManager) -> None:
        manager.clear_cache()
        del self.held[id(manager)]

    def _holders(self, handle: ConnectionHandle) -> int:
        return sum(handle in handles for kinds in self.held.values() for handles in kinds.values())

    @invariant()
    def open_as_long_as_somebody_holds_it(self) -> None:
        for handle in self.current.values():
            assert handle.closed == (self._holders(handle) == 0)
            if not handle.closed:
                with handle as connection:
                    assert connection.execute("SELECT 1").fetchone() == (1,)

    def teardown(self) -> None:
        for manager in self.made:
            manager.clear_cache()


def test_the_cache(config: dict[str, Any]) -> None:
    config["pool_settings"] = {"min_size": 1, "max_size": 1}
    machine = type("Cache", (Cache,), {"config": config})
    run_state_machine_as_test(machine, settings=FEW)
