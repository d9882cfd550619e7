"""A state machine: whatever borrowers do in whatever order, the pool's accounts are right."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgmonkey import GivenBackError, Lease, PGConnectionManager, PoolTimeoutError

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
        pool = {"min_size": 0, "max_size": LARGEST, "timeout": 10}
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
            self.handle.borrow(timeout=0.02)

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


def test_any_order_of_borrowers_acts(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    observer.execute("CREATE TABLE t (a int)")
    machine = type("Pool", (Pool,), {"config": config, "observer": observer})
    run_state_machine_as_test(machine, settings=FEW)
