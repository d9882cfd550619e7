"""django-guardian."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import GUNICORN, Programs

PERMISSIONS = (
    "SELECT username, name FROM guardian_userobjectpermission JOIN auth_user ON user_id = auth_user.id"
    " JOIN shop_thing ON object_pk = shop_thing.id::text ORDER BY 1, 2"
)


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.manage("guardian_app", "migrate")
    return programs.serve(*GUNICORN, "guardian_app:application")


def ask(client: httpx.Client, user: str, path: str) -> httpx.Response:
    return client.get(path, headers={"User": user})


def test_an_object_and_its_permission_are_stored_together_or_not_at_all(
    programs: Programs, client: httpx.Client
) -> None:
    assert ask(client, "ann", "/create/apple").status_code == 201
    assert ask(client, "ann", "/create/forbidden").status_code == 403
    assert ask(client, "bob", "/create/apple").status_code == 500  # the name is taken, and nobody handles it
    assert programs.rows(PERMISSIONS) == [("ann", "apple")]
    assert programs.rows("SELECT count(*) FROM auth_user WHERE username = 'bob'") == [(0,)]
    assert ask(client, "bob", "/change/apple").status_code == 403
    assert programs.rows("SELECT price FROM shop_thing") == [(1,)]
    assert ask(client, "ann", "/change/apple").status_code == 200
    assert programs.rows("SELECT price FROM shop_thing") == [(7,)]
    assert ask(client, "ann", "/hand_over/apple/nobody").status_code == 409
    assert programs.rows(PERMISSIONS) == [("ann", "apple")]
    assert ask(client, "ann", "/hand_over/apple/bob").status_code == 200
    assert programs.rows(PERMISSIONS) == [("bob", "apple")]
    assert ask(client, "ann", "/mine").json() == {"names": []}
    assert ask(client, "bob", "/mine").json() == {"names": ["apple"]}
    programs.wait_until_server_is_whole(client)


def test_many_users_at_the_same_time_own_what_is_theirs(programs: Programs, client: httpx.Client) -> None:
    def work(number: int) -> list[str]:
        user = f"user{number}"
        assert ask(client, user, f"/create/thing{number}").status_code == 201
        assert ask(client, user, f"/change/thing{(number + 1) % 12}").status_code in (403, 404)
        names: list[str] = ask(client, user, "/mine").json()["names"]
        return names

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(work, range(12))) == [[f"thing{number}"] for number in range(12)]
    assert len(programs.rows(PERMISSIONS)) == 12
    programs.wait_until_server_is_whole(client)
