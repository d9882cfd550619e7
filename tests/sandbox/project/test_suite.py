"""Two hundred tests, each of which starts with an empty table, and does something of its own."""

import random

import pytest

ROWS = "SELECT coalesce(json_agg(a ORDER BY a), '[]') FROM t"


@pytest.mark.parametrize("number", range(200))
def test_requests(number, ask, note):
    assert ask("/value", ROWS) == (200, {"value": []})
    rng = random.Random(number)
    found = []
    for a in range(6):
        path = rng.choice(["write", "write", "deferred", "late", "crash", "refuse", "redirect", "block", "ignored"])
        status, _ = ask(f"/{path}", None, a=a, status=rng.choice([400, 409, 500] if path == "refuse" else [201, 409]))
        found.append((path, status))
    found.append(ask("/value", ROWS))
    note(found)
