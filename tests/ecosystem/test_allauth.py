"""django-allauth: sign-up and log-in through its pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import GUNICORN, Programs

USERS = "SELECT username FROM auth_user ORDER BY username"
ADDRESSES = "SELECT email FROM account_emailaddress ORDER BY email"


@pytest.fixture
def site(programs: Programs) -> httpx.Client:
    programs.manage("allauth_app", "migrate")
    return programs.serve(*GUNICORN, "allauth_app:application")


class Browser:
    """Keeps cookies, as each visitor's browser does."""

    def __init__(self, site: httpx.Client) -> None:
        self._client = httpx.Client(base_url=site.base_url, headers={"Connection": "close"}, timeout=30)

    def post(self, path: str, **fields: str) -> int:
        self._client.get("/accounts/login/")
        fields["csrfmiddlewaretoken"] = self._client.cookies["csrftoken"]
        return self._client.post(path, data=fields).status_code

    def sign_up(self, name: str) -> int:
        return self.post("/accounts/signup/", username=name, email=f"{name}@example.org", password1="a long one 42")

    def log_in(self, login: str, password: str = "a long one 42") -> int:
        return self.post("/accounts/login/", login=login, password=password)

    @property
    def me(self) -> str:
        name: str = self._client.get("/me").json()["name"]
        return name


def test_a_visitor_signs_up_whole_or_not_at_all(programs: Programs, site: httpx.Client) -> None:
    ann = Browser(site)
    assert ann.sign_up("ann") == 302
    assert ann.me == "ann"
    assert ann.post("/accounts/logout/") == 302
    assert ann.me == ""
    assert ann.log_in("ann", "wrong") == 200  # the form again
    assert ann.me == ""
    assert ann.log_in("ann@example.org") == 302
    assert ann.me == "ann"
    forbidden = Browser(site)
    assert forbidden.sign_up("forbidden") == 403  # its signal's receiver refuses
    assert forbidden.me == ""
    assert Browser(site).sign_up("ann") == 200  # the form again
    assert programs.rows(USERS) == [("ann",)]
    assert programs.rows(ADDRESSES) == [("ann@example.org",)]
    assert programs.rows("SELECT name FROM shop_thing") == [("present for ann",)]
    assert programs.rows("SELECT count(*) FROM django_session") == [(1,)]
    programs.wait_until_server_is_whole(site)


def test_many_sign_up_at_the_same_time(programs: Programs, site: httpx.Client) -> None:
    def sign_up(number: int) -> int:
        browser = Browser(site)
        status = browser.sign_up(f"user{number % 8}")
        assert browser.me == (f"user{number % 8}" if status == 302 else "")
        return status

    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(sign_up, range(24)))
    assert statuses.count(302) == 8
    assert programs.rows(USERS) == [(f"user{number}",) for number in range(8)]
    assert programs.rows(ADDRESSES) == [(f"user{number}@example.org",) for number in range(8)]
    assert programs.rows("SELECT count(*) FROM django_session") == [(8,)]
    programs.wait_until_server_is_whole(site)
