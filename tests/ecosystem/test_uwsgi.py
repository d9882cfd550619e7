"""uWSGI, which loads the application and then forks its workers, by default without telling Python."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import Programs

UWSGI = ("run_uwsgi", "--http-socket=127.0.0.1:PORT", "--master", "--die-on-term", "--disable-logging", "--workers=4")
WAYS = {
    "by default": ((), 2000),
    "with Python's hooks": (("--py-call-uwsgi-fork-hooks",), 500),
    "loaded in each worker": (("--lazy-apps",), 500),
    "with threads": (("--threads=4",), 500),
}


@pytest.mark.parametrize("framework", ["flask", "django"])
@pytest.mark.parametrize("way", WAYS)
def test_workers_get_their_own_answers(way: str, framework: str, programs: Programs) -> None:
    options, number = WAYS[way]
    client = programs.serve(*UWSGI, *options, "--module", f"uwsgi_{framework}:app")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: client.get(f"/{n}"), range(number)))
    assert [answer.status_code for answer in answers] == [200] * number
    told = [answer.json() for answer in answers]
    assert [each["text"] for each in told] == [str(n) for n in range(number)]
    workers = {each["worker"] for each in told}
    assert len(workers) > 1
    of_backends = {(each["backend"], each["worker"]) for each in told}
    assert len({backend for backend, _ in of_backends}) == len(of_backends)
