"""What the buttons break, what is promised of it, and what is seen: by a client of the shop, and beside its pool."""

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, responses
from typing import Any
from urllib.parse import urlencode, urlsplit

import psycopg

from pgmonkey import load_config

from .. import shop
from .watching import latest

LOCK = os.getpid()  # an advisory lock for each of the three shops
PLACE = "INSERT INTO purchase (customer, total_cents) VALUES (%(customer)s, 0)"


@dataclass(frozen=True)
class Experiment:
    """A button."""

    name: str
    button: str
    does: str
    promise: str
    act: Sequence[str]
    """What a request of the shop executes in its transaction, before it answers 201."""
    run: Callable[["Bench"], None]


@dataclass
class Result:
    """What was seen, and whether it was as promised."""

    kept: bool = True
    seen: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What a client was answered; a status of 0 is no answer at all."""

    status: int
    headers: Mapping[str, str]
    seconds: float

    def __str__(self) -> str:
        return f"{self.status} {responses.get(self.status, 'no answer')}"


class Bench:
    """Where an experiment is made."""

    def __init__(self, experiment: Experiment, cookie: str, token: str, *, hears_clients_leave: bool) -> None:
        config = load_config(shop.CONFIG, resolve_env=True)
        self.pool_max = int(config["pool_settings"]["max_size"])
        self.hears_clients_leave = hears_clients_leave
        self._experiment = experiment
        self._path = f"/promises/{experiment.name}/act"
        self._customer = f"{experiment.button} ({secrets.token_hex(3)})"
        self._form = urlencode({shop.CSRF_FIELD: token, "customer": self._customer})
        self._headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
        self._address = urlsplit(os.environ["SHOP_URL"]).netloc
        self._settings = config["connection_settings"]
        self._result = Result()

    def run(self) -> Result:
        """Make the experiment; return what was seen."""
        try:
            self._experiment.run(self)
        except (OSError, ValueError, psycopg.Error) as error:
            self.see(False, f"The experiment itself failed: {error}")
        return self._result

    def see(self, kept: bool, text: str) -> None:
        """Note what was seen, and whether it was as promised."""
        self._result.kept = self._result.kept and kept
        self._result.seen.append(text)

    # -- as a client of the shop ------------------------------------------------------------------------------------

    def get(self, path: str = "/") -> Answer:
        """Open a page."""
        return self._request("GET", path)

    def act(self, attempts: int = 1) -> Answer:
        """Send the request that executes what the experiment breaks; after a 503 again, up to so many *attempts*."""
        answer = self._request("POST", self._path, self._form)
        return self.act(attempts - 1) if answer.status == 503 and attempts > 1 else answer

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Send that request, and leave without waiting for the answer."""
        with closing(HTTPConnection(self._address, timeout=60)) as connection:
            connection.request("POST", self._path, self._form, self._headers)
            yield

    def _request(self, method: str, path: str, body: str | None = None) -> Answer:
        started = time.monotonic()
        try:
            with closing(HTTPConnection(self._address, timeout=60)) as connection:
                connection.request(method, path, body, self._headers)
                response = connection.getresponse()
                response.read()
        except (OSError, HTTPException):
            return Answer(0, {}, time.monotonic() - started)
        return Answer(response.status, response.headers, time.monotonic() - started)

    # -- beside the pool --------------------------------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection that is none of the pool's."""
        return psycopg.connect(**{**self._settings, "application_name": "panel"}, autocommit=True)

    def ask(self, query: str, *params: object) -> Any:
        """Return the value that *query* finds."""
        with self.connect() as connection:
            found = connection.execute(query.encode(), params).fetchone()
            return None if found is None else found[0]

    def stored(self) -> int:
        """Return how many orders the experiment has left in the database."""
        return int(self.ask("SELECT count(*) FROM purchase WHERE customer = %s", self._customer))

    @property
    def application(self) -> str:
        """The name under which the shop's connections are known to the server."""
        return str(self._settings["application_name"])

    def see_log(self, path: str = "") -> None:
        """Note what was logged of the latest request of *path*, or of the experiment's own."""
        ends = next((seen.ends for seen in list(latest) if seen.path == (path or self._path)), [])
        self.see(True, f"The log says: {'; '.join(ends) or 'nothing'}.")

    def restart_server(self) -> float:
        """Let the demo restart PostgreSQL; return how many seconds that took."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(os.environ["SHOP_CONTROL"])
            return float(control.makefile().read())


def wait(condition: Callable[[], object], seconds: float = 15) -> float:
    """Wait until *condition* holds, for as many *seconds* at most; return how many it took."""
    started = time.monotonic()
    while not condition() and time.monotonic() < started + seconds:
        time.sleep(0.02)
    return time.monotonic() - started


# -- the experiments --------------------------------------------------------------------------------------------------


def kill(bench: Bench) -> None:
    answer, stored = bench.act(), bench.stored()
    bench.see(answer.status == 500, f"The request wrote an order and lost its connection. It was answered {answer}.")
    bench.see(stored == 0, f"Orders that it left in the database: {stored}.")
    bench.see_log()
    idle = "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = %s AND state = 'idle'"
    pids = bench.ask(f"{idle} AND query NOT LIKE 'LISTEN%%'", bench.application) or []
    bench.ask("SELECT count(pg_terminate_backend(pid)) FROM unnest(%s::int[]) pid", pids)
    wait(lambda: bench.ask("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", pids) == 0)
    answer = bench.get()
    text = f"Then all connections that waited in the pool were killed, too ({len(pids)}). The next page: {answer}"
    bench.see(answer.status == 200, f"{text}, after {answer.seconds:.2f} s.")


def restart(bench: Bench) -> None:
    answers: list[Answer] = []
    with ThreadPoolExecutor(1) as client:
        back = False

        def visit() -> None:
            while not back:
                answers.append(bench.get())
                time.sleep(0.02)

        visiting = client.submit(visit)
        try:
            away = bench.restart_server()
        finally:
            back = True
        visiting.result()
    counted = ", ".join(f"{count} x {status}" for status, count in sorted(Counter(map(str, answers)).items()))
    known = all(answer.status in (200, 500) or "Retry-After" in answer.headers for answer in answers)
    bench.see(known, f"PostgreSQL was away for {away:.1f} s. A client that opened pages meanwhile got {counted}.")
    if known:
        interrupted = any(answer.status == 500 for answer in answers)
        about = " A 500 is a page that was being rendered when the server stopped." if interrupted else ""
        bench.see(True, f"Each 503 came with Retry-After.{about}")
    first: list[Answer] = []
    seconds = wait(lambda: first.append(bench.get()) or first[-1].status == 200)
    bench.see(first[-1].status == 200, f"The next page after that: {first[-1]}, within {seconds:.2f} s.")


def fail_commit(bench: Bench) -> None:
    answer, stored = bench.act(), bench.stored()
    text = "The view wrote an order, and a line for an order that does not exist, and returned 201"
    bench.see(answer.status == 500, f"{text}. The constraint is checked at COMMIT, so the client got {answer}.")
    bench.see(stored == 0, f"Orders that it left in the database: {stored}.")
    bench.see_log()


def exhaust(bench: Bench) -> None:
    size = bench.pool_max
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
    with bench.connect() as connection, ThreadPoolExecutor(size) as clients:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            acting = [clients.submit(bench.act, attempts=5) for _ in range(size)]
            wait(lambda: bench.ask(waiting, LOCK) == size)
            answer = bench.get()
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        served = sum(each.result().status == 201 for each in acting)
    text = f"{size} requests kept a connection each. The next page waited {answer.seconds:.1f} s and got {answer}"
    told = answer.headers.get("Retry-After")
    bench.see(answer.status == 503 and told is not None, f"{text}, Retry-After: {told}.")
    bench.see_log("/")
    bench.see(served == size, f"Then they were let go: {served} x 201 Created.")
    bench.see((after := bench.get()).status == 200, f"The next page after that: {after}.")


def leave(bench: Bench) -> None:
    asleep = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
    pids: list[int | None] = []
    with bench.acting():
        wait(lambda: pids.append(bench.ask(asleep, bench.application)) or pids[-1])
    works = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND xact_start IS NOT NULL"
    seconds = wait(lambda: not bench.ask(works, pids[-1]))
    bench.see(pids[-1] is not None, "The request wrote an order and began to sleep for 3 s. Then its client hung up.")
    stored = bench.stored()
    if stored:
        text = f"The server never told the shop: it slept on for {seconds:.1f} s and was committed."
    else:
        text = f"Its statement was cancelled and its transaction gone within {seconds:.2f} s."
    bench.see(bench.hears_clients_leave is not bool(stored), f"{text} Orders that it left in the database: {stored}.")
    bench.see_log()


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "kill",
            "Kill my connection",
            "A request writes an order, and PostgreSQL ends its session in the middle (pg_terminate_backend).",
            "What is refused leaves nothing behind (P2), the error is the server's own (P10), and no request is given a"
            " dead connection (P7).",
            [PLACE, "SELECT pg_terminate_backend(pg_backend_pid())"],
            kill,
        ),
        Experiment(
            "restart",
            "Restart the server",
            "PostgreSQL is shut down and started again, while a client goes on opening pages.",
            "A server that is away is a 503 with Retry-After (P9), and once it is back, no request is given a dead"
            " connection (P7).",
            [],
            restart,
        ),
        Experiment(
            "commit",
            "Fail the COMMIT",
            "A view breaks a deferred constraint, which PostgreSQL checks at COMMIT, and returns a success.",
            "No success status leaves before COMMIT has succeeded; a COMMIT that fails is an error (P1).",
            [PLACE, "INSERT INTO line (purchase_id, product_id, quantity, price_cents) VALUES (0, 1, 1, 1)"],
            fail_commit,
        ),
        Experiment(
            "exhaust",
            "Exhaust the pool",
            "As many requests as the pool has connections borrow one each and keep it. Then somebody opens a page.",
            "An exhausted pool is a 503 with Retry-After, and the log says who holds a connection longest, and since"
            " when (P9).",
            ["SET LOCAL statement_timeout = '60s'", f"SELECT pg_advisory_xact_lock_shared({LOCK})"],
            exhaust,
        ),
        Experiment(
            "leave",
            "Slow query, then leave",
            "A request writes an order and starts a slow query. Its client hangs up before the answer.",
            "FastAPI cancels the query of a client that leaves and rolls back (P13). A WSGI server, as under Flask and"
            " Django here, does not report that a client has left: the request runs to its end.",
            [PLACE, "SELECT pg_sleep(3)"],
            leave,
        ),
    )
}
