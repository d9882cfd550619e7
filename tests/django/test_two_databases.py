"""What fails on one database of a request leaves the others rolled back, and usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .projects import SETTINGS, make, ok, run

PROGRAM = """
from django.conf import settings
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
def write(request):
    connections["default"].cursor().execute("INSERT INTO child VALUES (1)")  # refused at COMMIT
    connections["other"].cursor().execute("INSERT INTO seen VALUES (1)")
    return HttpResponse()
def read(request):
    return HttpResponse(connections["other"].cursor().execute("SELECT count(*) FROM seen").fetchone())
def ignore(request):
    connections["default"].cursor().execute("INSERT INTO seen VALUES (1)")
    try:
        connections["other"].cursor().execute("SELECT 1/0")
    except Exception:
        return HttpResponse()
def hook(request):
    connections["default"].cursor().execute("INSERT INTO seen VALUES (1)")
    connections["other"].cursor().execute("INSERT INTO seen VALUES (1)")
    transaction.on_commit(lambda: 1 / 0)
    return HttpResponse()
urlpatterns = [path("write", write), path("read", read), path("ignore", ignore), path("hook", hook)]
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["testserver"]
settings.MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware"]
connection.cursor().execute(
    "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE seen (id int);"
    "CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
)
client = Client(raise_request_exception=False)
for url in ("/write", "/read", "/ignore", "/read", "/hook", "/read"):
    response = client.get(url)
    print(response.status_code, response.content[:1])
    for each in connections.all():
        each.close()  # as at the end of a request, which Django's test client leaves out
"""


def test_the_other_is_rolled_back_and_usable(tmp_path: Path, config: dict[str, Any]) -> None:
    make(tmp_path, config)
    (tmp_path / "settings.py").write_text(f"EXTRA = {{}}\n{SETTINGS}DATABASES['other'] = dict(DATABASES['default'])\n")
    assert ok(run(tmp_path, code=PROGRAM)).splitlines() == [
        *("500 b'\\n'", "200 b'0'"),
        *("500 b'\\n'", "200 b'0'"),
        # What a function of on_commit() raises comes after the COMMIT of its own database.
        *("500 b'\\n'", "200 b'1'"),
    ]
