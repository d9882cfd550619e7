"""A state machine: whatever managers do in whatever order, the cache closes what nobody holds and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from pgmonkey import ConnectionHandle, PGConnectionManager

FEW = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


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


def test_any_order_of_managers_acts(config: dict[str, Any]) -> None:
    config["pool_settings"] = {"min_size": 1, "max_size": 1}
    machine = type("Cache", (Cache,), {"config": config})
    run_state_machine_as_test(machine, settings=FEW)
