"""The answers of a batch, which are known when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Answer(Generic[T]):
    """What a query method of a batch returns: its `result` is there when the batch has ended."""

    def __init__(self) -> None:
        self._results: list[T] = []

    @property
    def result(self) -> T:
        """What the query method of a database would return; raises RuntimeError while the batch has not succeeded."""
        if not self._results:
            raise RuntimeError("there is no result: the batch has not ended, or it has failed")
        return self._results[0]

    def make(self, make: Callable[[], T]) -> None:
        """Let the result be what *make* returns."""
        self._results = [make()]
