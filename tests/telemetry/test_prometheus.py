"""Metrics for Prometheus, of one process and of the workers of gunicorn together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgmonkey import Database, telemetry

from ..configs import pools
from ..contract.conftest import free_port

HERE = Path(__file__).parent
FILES = HERE.parents[1] / "docs" / "prometheus"
APP = """
import os
from flask import Flask, Response
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from flask_pgmonkey import PGMonkey
from pgmonkey import telemetry

telemetry.prometheus()
app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG_FILE"]
db = PGMonkey(app)

@app.get("/query")
def query():
    return {"a": db.fetch_value("SELECT count(*) FROM pg_class"), "pid": os.getpid()}

@app.get("/metrics")
def metrics():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return Response(generate_latest(registry), mimetype="text/plain")
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the values by name and labels, in the order of their names, without the pool's."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sorted(sample.labels.items()) if name not in ("pool", "pid")}
            found[(sample.name, *labels.values())] = sample.value
    return found


def test_one_process(config: dict[str, Any]) -> None:
    registry = CollectorRegistry()
    database = Database(pools(config, min_size=1, max_size=3))
    listener = telemetry.prometheus(registry)
    try:
        for _ in range(10):
            database.fetch_one("SELECT 1")
        with pytest.raises(ZeroDivisionError), database.transaction() as connection:
            connection.execute("SELECT 1")
            raise ZeroDivisionError
        with pytest.raises(psycopg.Error):
            database.fetch_one("SELECT 1 / 0")
        with database.connection():
            found = samples(generate_latest(registry).decode())
    finally:
        telemetry.remove(listener)
    assert found["db_client_operation_duration_seconds_count", "", "SELECT"] == 11
    assert found["db_client_operation_duration_seconds_count", "22012", "SELECT"] == 1
    assert found["pgmonkey_transactions_total", "ZeroDivisionError", "rollback"] == 1
    assert (found["db_client_connection_count", "used"], found["db_client_connection_count", "idle"]) == (1, 0)
    assert found["db_client_connection_max",] == 3
    assert found["pgmonkey_connections_created_total",] == 1
    assert found["db_client_connection_wait_time_seconds_count",] == 13
    assert found["db_client_connection_create_time_seconds_count",] == 1
    database.close()


def test_the_rules_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    telemetry.remove(telemetry.prometheus(registry))
    suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}
    known = {metric.name + suffix for metric in registry.collect() for suffix in suffixes.get(metric.type, ("",))}
    board = json.loads((FILES / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = {name for expression in expressions for name in re.findall(r"(?:db_client|pgmonkey)_\w+", expression)}
    assert asked <= known
    assert len(asked) >= 12


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_the_alert_rules_by_promtool() -> None:
    for arguments in (("check", "rules", FILES / "alerts.yaml"), ("test", "rules", HERE / "alerts_test.yaml")):
        finished = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture
def workers(config_file: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "measured.py").write_text(APP)
    (tmp_path / "metrics").mkdir()
    port = free_port()
    environ = {**os.environ, "CONFIG_FILE": str(config_file), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    command = ["-m", "gunicorn", "--no-control-socket", f"--bind=127.0.0.1:{port}", "--workers=4"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--worker-class=gthread", "--threads=4", "measured:app"],
            cwd=tmp_path,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(300):
                assert process.poll() is None, (tmp_path / "log").read_text()
                with suppress(httpx.TransportError):
                    client.get("/metrics")
                    break
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def test_four_workers_of_gunicorn(workers: httpx.Client, observer: psycopg.Connection[Any]) -> None:
    def request(_: int) -> int:
        answer = httpx.get(f"{workers.base_url}/query", timeout=30)
        assert answer.status_code == 200
        return int(answer.json()["pid"])

    with ThreadPoolExecutor(16) as threads:
        pids = set(threads.map(request, range(60)))
    assert len(pids) > 1
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for _ in range(100):  # a worker tells of a connection that it makes in the background when it lends the next
        found = samples(workers.get("/metrics").text)
        (open_now,) = observer.execute(backends).fetchone() or (0,)
        if found["db_client_connection_count", "idle"] + found["db_client_connection_count", "used"] == open_now:
            break
        request(0)
        time.sleep(0.1)
    counted = found["db_client_connection_count", "idle"] + found["db_client_connection_count", "used"]
    assert counted == open_now
    assert found["db_client_connection_count", "used"] == 0
    assert found["db_client_operation_duration_seconds_count", "", "SELECT"] >= 60
