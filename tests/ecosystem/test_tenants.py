"""django-tenants, whose own backend is derived from ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import GUNICORN, Programs

RED = "SELECT name FROM red.shop_thing ORDER BY name"
BLUE = "SELECT name FROM blue.shop_thing ORDER BY name"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.manage("tenants_app", "migrate_schemas", "--shared")
    programs.run("-c", "import tenants_app; tenants_app.make_tenants()")
    client = programs.serve(*GUNICORN, "tenants_app:application")
    client.headers["Host"] = "red.test"
    return client


def ask(client: httpx.Client, tenant: str, path: str) -> httpx.Response:
    return client.get(path, headers={"Host": f"{tenant}.test"})


def test_each_tenant_writes_in_its_schema(programs: Programs, client: httpx.Client) -> None:
    assert ask(client, "red", "/create/apple").status_code == 201
    assert ask(client, "blue", "/create/apple").json() == {"things": 1}
    assert ask(client, "red", "/create/refused?status=409").json() == {"things": 2}
    assert ask(client, "red", "/create/apple").status_code == 500
    assert ask(client, "green", "/create/apple").status_code == 404  # no such tenant
    assert ask(client, "blue", "/after_an_error/pear").json() == {"schema": "blue"}
    assert programs.rows(RED) == [("apple",)]
    assert programs.rows(BLUE) == [("apple",), ("pear again",)]
    assert ask(client, "red", "/everywhere/plum").json() == {"tenants": 3}
    assert ask(client, "red", "/everywhere/fig?status=409").json() == {"tenants": 3}
    assert ask(client, "red", "/seen").json() == {"names": ["apple", "plum"], "path": "red, public", "schema": "red"}
    assert ask(client, "blue", "/cursors").json() == {"names": ["apple", "pear again", "plum"]}
    programs.wait_until_server_is_whole(client)


def test_tenants_at_the_same_time_do_not_see_each_other(programs: Programs, client: httpx.Client) -> None:
    def work(number: int) -> None:
        tenant = ("red", "blue")[number % 2]
        status = (201, 409)[number % 3 == 0]
        assert ask(client, tenant, f"/create/{tenant}{number}?status={status}").status_code == status
        seen = ask(client, tenant, "/seen").json()
        assert seen["path"] == f"{tenant}, public"
        assert seen["schema"] == tenant
        assert all(name.startswith(tenant) for name in seen["names"])

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(60)))
    stored = [{name for (name,) in programs.rows(query)} for query in (RED, BLUE)]
    wanted = [
        {f"{tenant}{n}" for n in range(60) if n % 3 and n % 2 == half} for half, tenant in enumerate(("red", "blue"))
    ]
    assert stored == wanted
    programs.wait_until_server_is_whole(client)


def test_the_package_works_on_all_tenants(programs: Programs, client: httpx.Client) -> None:
    programs.manage("tenants_app", "migrate_schemas", "--executor=multiprocessing")
    programs.manage("tenants_app", "migrate_schemas", "shop", "zero", "--tenant")
    assert programs.rows("SELECT to_regclass('red.shop_thing'), to_regclass('blue.shop_thing')") == [(None, None)]
    programs.manage("tenants_app", "migrate_schemas")
    assert ask(client, "blue", "/create/apple").status_code == 201
    assert programs.rows(BLUE) == [("apple",)]
    programs.wait_until_server_is_whole(client)
