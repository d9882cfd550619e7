"""The panel of the demo: what it shows of each shop, and what its buttons break, by HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx
import psycopg
import pytest

from .conftest import SHOPS

if TYPE_CHECKING:
    from .conftest import Demo

T = TypeVar("T")
PATIENCE = 90  # seconds, of a client


class Person:
    """Somebody with a browser in one of the shops."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=url, limits=limits, timeout=PATIENCE)
        found = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.client.get("/").text)
        self.token = {"csrfmiddlewaretoken": found[0]}

    def press(self, button: str) -> str:
        """Press a button; return the page that follows."""
        answer = self.client.post(f"/promises/{button}", data=self.token, follow_redirects=True)
        assert [each.status_code for each in answer.history] == [303]
        assert answer.status_code == 200
        return plain(answer)


def plain(answer: httpx.Response) -> str:
    """Return the text of a page's main part."""
    main = answer.text.partition("<main")[2].partition("</main>")[0]
    return " ".join(re.sub("<[^>]*>", " ", main).split())


@pytest.fixture(scope="module")
def people(demo: Demo) -> Iterator[dict[str, Person]]:
    with ExitStack() as stack:
        people = {name: Person(name, demo.urls[name]) for name in SHOPS}
        for each in people.values():
            stack.callback(each.client.close)
        yield people


def in_each(people: dict[str, Person], work: Callable[[Person], T]) -> dict[str, T]:
    """Do *work* in the three shops at the same time: most of it is waiting."""
    with ThreadPoolExecutor(len(people)) as threads:
        return dict(zip(people, threads.map(work, people.values()), strict=True))


SEEN = {
    "kill": "It was answered 500 Internal Server Error. .* database: 0. .* rolled back: .* next page: 200 OK",
    "commit": "the client got 500 Internal Server Error. .* database: 0. .* rolled back: .*(?i:foreign ?key)",
    "exhaust": "8 requests kept a connection each. .* 503 Service Unavailable, Retry-After: 1. .* 8 of at most 8 in use"
    ".* held longest: .* 8 x 201 Created. .* next page after that: 200 OK",
    "leave": "Then its client hung up. .* database: [01]",
}


@pytest.mark.parametrize("button", SEEN)
def test_what_a_button_breaks_is_as_promised(button: str, people: dict[str, Person]) -> None:
    pages = in_each(people, lambda person: person.press(button))
    for name, page in pages.items():
        assert "What is promised" in page
        assert re.search(SEEN[button], page), f"{name}: {page}"
        assert "The promise was kept." in page, f"{name}: {page}"
    if button == "leave":
        stored = {name: re.findall(r"database: (\d)", page) for name, page in pages.items()}
        assert stored == {"Flask": ["1"], "FastAPI": ["0"], "Django": ["1"]}


def test_a_restart_of_the_server_is_as_promised(people: dict[str, Person], demo: Demo) -> None:
    with psycopg.connect(demo.dsn) as connection:
        started = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
    for name, person in people.items():
        page = person.press("restart")
        assert "The promise was kept." in page, f"{name}: {page}"
        with psycopg.connect(demo.dsn) as connection:
            again = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
        assert again != started, name
        started = again


def test_while_the_pool_is_exhausted_the_503_is_a_page_of_the_shop(people: dict[str, Person], demo: Demo) -> None:
    pids = [int(re.findall(r"<dd>(\d+), up", each.client.get("/promises/live").text)[0]) for each in people.values()]
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    def keep(person: Person) -> int:
        fields = {**person.token, "customer": "nobody"}
        status = 503
        for _ in range(5):  # connecting may take longer than the pool's timeout on a busy machine
            if status == 503:
                status = person.client.post("/promises/exhaust/act", data=fields).status_code
        return status

    with ThreadPoolExecutor(24) as threads, psycopg.connect(demo.dsn, autocommit=True) as holder:
        for pid in pids:
            holder.execute("SELECT pg_advisory_lock(%s)", [pid])
        kept = [threads.submit(keep, person) for person in people.values() for _ in range(8)]
        wait(lambda: holder.execute(waiting).fetchone() == (24,))
        pages = in_each(people, lambda person: person.client.get("/"))
        holder.execute("SELECT pg_advisory_unlock_all()")
        assert {each.result() for each in kept} == {201}
    for name, page in pages.items():
        assert (page.status_code, page.headers["retry-after"]) == (503, "1"), name
        assert page.headers["content-type"].startswith("text/html")
        assert "<h1>Please try again</h1>" in page.text
        assert "Behind this page" in page.text


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_500_is_a_page_of_the_shop(people: dict[str, Person]) -> None:
    for name, person in people.items():
        page = person.client.post("/promises/commit/act", data={**person.token, "customer": "nobody"})
        assert page.status_code == 500, name
        assert "<h1>Something went wrong</h1>" in page.text
        assert "Behind this page" in page.text


def test_the_panel_is_on_each_page(people: dict[str, Person], demo: Demo) -> None:
    for name, person in people.items():
        form = {**person.token, "customer": "Ann"}
        pages = [
            person.client.get("/"),
            person.client.get("/nowhere"),
            person.client.get("/orders"),
            person.client.post("/orders", data=form),
            person.client.post("/orders", data={**form, "quantity-4": "7"}),
            person.client.get("/promises/kill"),
        ]
        assert [page.status_code for page in pages] == [200, 404, 405, 422, 409, 200]
        for page in pages:
            assert "Behind this page" in page.text
            assert re.search(r"\d in use, \d idle, 8 at most", page.text)
            assert page.text.count('action="/promises/') == 5
            for other, url in demo.urls.items():
                assert f'<a href="{url}"{" aria-current" if other == name else ""}' in page.text


def test_the_panel_shows_how_requests_ended(people: dict[str, Person]) -> None:
    for name, person in people.items():
        form = {**person.token, "customer": "Ann", "quantity-3": "1"}
        assert person.client.post("/orders", data=form).status_code == 303
        assert person.client.post("/orders", data={**form, "quantity-4": "7"}).status_code == 409
        assert person.client.get("/nowhere").status_code == 404
        live = " ".join(re.sub("<[^>]*>", " ", person.client.get("/promises/live").text).split())
        shown = (
            r"404 GET /nowhere no transaction 409 POST /orders rolled back: (the )?status (is )?409 \(statements: \d+\)"
            r" 303 POST /orders committed \(statements: \d+\)"
        )
        assert re.search(shown, live), (name, live)


def test_a_button_is_not_pressed_by_another_site_or_machine(people: dict[str, Person]) -> None:
    for person in people.values():
        url = str(person.client.base_url)
        for path in ("/promises/kill", "/promises/kill/act"):
            assert person.client.post(path).status_code == 403
            assert person.client.post(path, data={"csrfmiddlewaretoken": "guessed"}).status_code == 403
            assert httpx.post(f"{url}{path[1:]}", data=person.token).status_code == 403, "without the cookie"
            assert person.client.get(f"{path}/act").status_code in (404, 405)
        assert person.client.post("/promises/nothing", data=person.token).status_code == 404
        # A name of another site that leads to this machine.
        for method, path in (("GET", "/"), ("POST", "/promises/kill")):
            answer = person.client.request(method, path, headers={"host": "evil.example:80"})
            assert (answer.status_code, answer.text[:24]) == (403, "The demo answers nobody ")


@pytest.mark.parametrize("start", ["on_flask; example_apps.panel.on_flask.create_app()", "on_fastapi"])
def test_without_the_demo_there_is_no_panel(start: str, examples: Path) -> None:
    command = [sys.executable, "-c", f"import example_apps.panel.{start}"]
    environ = {**os.environ, "SHOP_PASSWORD": "secret"}
    run = subprocess.run(command, cwd=examples, env=environ, capture_output=True, text=True)
    assert run.returncode == 1
    assert "set SHOP_PANEL=1 to have it" in run.stderr
