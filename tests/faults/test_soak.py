"""A long night with faults at random, forks, signals and hooks that raise: at its end, nothing has grown."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .clusters import Cluster
from .proxy import FaultProxy

Figure = Callable[[str, str], None]


@pytest.mark.timeout(1200)
def test_soak(
    proxied: dict[str, Any],
    proxy: FaultProxy,
    cluster: Cluster,
    dbname: str,
    figure: Figure,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    short = request.config.getoption("--short")
    seconds, growth, odd = (45, 1.1, "") if short else (600, 1.02, "odd")
    proxied["connection_settings"]["command_timeout"] = 3
    journal = tmp_path / "journal"
    with (tmp_path / "errors").open("w") as errors:
        program = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("soak.py")), json.dumps(proxied), journal, odd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def ask(command: str) -> None:
        assert program.stdin is not None
        program.stdin.write(f"{command}\n")
        program.stdin.flush()

    def measure() -> dict[str, Any]:
        ask("measure")
        assert program.stdout is not None
        answer = program.stdout.readline()
        assert answer, (tmp_path / "errors").read_text()
        measured: dict[str, Any] = json.loads(answer)
        return measured

    def one_fault(rng: random.Random) -> str:
        fault = rng.choice(["reset", "terminated", "silent", "slow", "fast restart", "crash", "refused", "frozen"])
        if fault == "reset":
            proxy.reset_all()
        elif fault == "terminated":
            cluster.terminate_backends(dbname)
        elif fault in ("silent", "slow", "refused"):
            proxy.silent, proxy.refuses = fault == "silent", fault == "refused"
            proxy.latency = 0.05 if fault == "slow" else 0.0
            time.sleep(rng.uniform(0.2, 1.5))
            proxy.silent, proxy.refuses, proxy.latency = False, False, 0.0
            proxy.reset_all()
        elif fault == "frozen":
            cluster.signal_all(signal.SIGSTOP)
            time.sleep(rng.uniform(0.2, 1.5))
            cluster.signal_all(signal.SIGCONT)
        else:
            cluster.end(signal.SIGQUIT if fault == "crash" else signal.SIGINT)
            time.sleep(rng.uniform(0, 1))
            cluster.begin()
        return fault

    rng = random.Random(13)
    faults: list[str] = []

    def go_on_until(end: float) -> None:
        while time.monotonic() < end:
            faults.append(one_fault(rng))
            time.sleep(rng.uniform(0.3, 2))

    started = time.monotonic()
    try:
        # What is made once and kept, caches and arenas, is made in the first part.
        go_on_until(started + seconds / 2)
        before = measure()
        ask("go")
        go_on_until(started + seconds)
        after = measure()
        ask("end")
        assert program.wait(20) == 0, (tmp_path / "errors").read_text()
    finally:
        program.kill()
        program.communicate()
    acknowledged = {int(key) for key in journal.read_text().split()}
    with psycopg.connect(cluster.dsn(dbname), autocommit=True) as connection:
        rows = {row[0] for row in connection.execute("SELECT a FROM t").fetchall()}
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert acknowledged <= rows
    assert len(acknowledged) > 20 * seconds
    assert after["given back"] == after["connections"] == before["connections"] == 24, (before, after)
    assert after["lost children"] == 0
    assert after["threads"] == before["threads"]
    assert after["descriptors"] == before["descriptors"]
    assert after["memory"] < before["memory"] * growth
    figure(
        f"{'45-second' if short else '10-minute'} soak with faults at random"
        + (", forks, signals and hooks that raise" if odd else ""),
        f"{len(faults)} faults, {after['failures']} writes refused, {len(acknowledged)} acknowledged, "
        f"{len(acknowledged - rows)} lost; threads {before['threads']} → {after['threads']}, "
        f"descriptors {before['descriptors']} → {after['descriptors']}, "
        f"memory {after['memory'] / before['memory'] - 1:+.1%}, connections {before['connections']} → "
        f"{after['connections']}",
    )
