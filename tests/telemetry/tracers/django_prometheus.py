"""django-prometheus, whose backends are made from those of others: ours is in the folder beside."""

from __future__ import annotations

from collections.abc import Callable

APPS = ("django_prometheus",)
ENGINE = "tests.telemetry.counting_backend"
# It counts each of an executemany(), and what server-side cursors execute not at all.
COUNTS = {"Django: executemany": 2, "Django: iterator": 0}


def install() -> None:
    """Do nothing: the ENGINE does."""


def seen(work: Callable[[], object]) -> list[str]:
    from django_prometheus.db import execute_total

    def count() -> float:
        return sum(
            sample.value for metric in execute_total.collect() for sample in metric.samples if "_total" in sample.name
        )

    before = count()
    work()
    return ["statement"] * int(count() - before)
