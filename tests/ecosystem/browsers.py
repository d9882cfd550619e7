"""Clients with cookies of their own, and many at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpx

T = TypeVar("T")


def browser(client: httpx.Client) -> httpx.Client:
    """Return another client of the same server."""
    return httpx.Client(base_url=client.base_url, timeout=30, headers={"Connection": "close"})


def at_once(number: int, function: Callable[[int], T]) -> list[T]:
    """Call *function* with 0 to *number* - 1, each in a thread of its own and all at the same time."""
    barrier = threading.Barrier(number)

    def call(n: int) -> T:
        barrier.wait()
        return function(n)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(call, range(number)))
