"""`query_tags` and `trace_to_server` on Django's connections."""

from __future__ import annotations

from pathlib import Path

from .projects import ok, run

TAGS = """
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
text = "SELECT current_query(), current_setting('application_name')"
def look():
    with connection.cursor() as cursor:
        cursor.execute(text)
        query, name = cursor.fetchone()
    return f"{query.removeprefix(text)} {name}"
def view(request, number):
    return HttpResponse(look())
urlpatterns = [path("users/<int:number>/", view)]
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["*"]
settings.MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware"]
span = NonRecordingSpan(SpanContext(255, 254, is_remote=False, trace_flags=TraceFlags(1)))
for _ in range(2):
    with trace.use_span(span):
        print(Client().get("/users/7/").content.decode())
        connection.close()
        with transaction.atomic():
            print(look())
        connection.close()
    print(look())
    connection.close()
"""


def test_a_request_tells_its_route_and_its_trace(project: Path) -> None:
    file = project / "config.yaml"
    added = "connection_settings:\n  application_name: shop\n  query_tags: true\n  trace_to_server: true\n"
    file.write_text(file.read_text().replace("connection_settings:\n", added))
    alone, trace = "/*application='shop',framework='django'", f"00-{255:032x}-{254:016x}-01"
    assert ok(run(project, code=TAGS)).splitlines() == 2 * [
        f" {alone},route='GET%20users%2F%3Cint%3Anumber%3E%2F'*/ {trace}",
        f" {alone}*/ {trace}",
        f" {alone}*/ shop",
    ]
