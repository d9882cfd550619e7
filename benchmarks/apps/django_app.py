"""``gunicorn benchmarks.apps.django_app:application``, with the way to connect named by the environment."""

import os
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

from .bound import InThreads

DSN, LIBRARY, SIZE = os.environ["BENCHMARK_DSN"], os.environ["BENCHMARK_LIBRARY"], 8
QUERY = "SELECT id, name FROM things WHERE id = %s"

_parts = conninfo_to_dict(DSN)
_stock: dict[str, Any] = {
    "ENGINE": "django.db.backends.postgresql",
    **{key: _parts.get(word) or "" for key, word in {"NAME": "dbname", "USER": "user", "PASSWORD": "password"}.items()},
    **{key: str(_parts.get(word) or "") for key, word in {"HOST": "host", "PORT": "port"}.items()},
}
_pool = {"min_size": SIZE, "max_size": SIZE}
DATABASES: dict[str, dict[str, Any]] = {
    "none": {},
    "libpq alone": {},
    "stock": _stock,
    "CONN_MAX_AGE": {**_stock, "CONN_MAX_AGE": 60},
    "pool": {**_stock, "OPTIONS": {"pool": _pool}},
    "pgmonkey": {**_stock, "ENGINE": "django_pgmonkey", "OPTIONS": {"pool": _pool}},
}
_name, _, _way = LIBRARY.partition(", ")
_database = {**DATABASES[_name], "ATOMIC_REQUESTS": True} if _way == "ATOMIC_REQUESTS" else DATABASES[_name]
_middleware = ["django_pgmonkey.middleware.TransactionMiddleware"] if _way == "TransactionMiddleware" else []

bound = InThreads(DSN)

settings.configure(
    SECRET_KEY="benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": _database} if _database else {},
    MIDDLEWARE=[*_middleware, "django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
    LOGGING_CONFIG=None,
)


def without(request: HttpRequest, number: int) -> JsonResponse:
    """Answer without a database."""
    return JsonResponse({"id": number, "name": f"thing {number}"})


def with_libpq(request: HttpRequest, number: int) -> JsonResponse:
    """Answer what the database says, which Django knows nothing of."""
    row = bound.fetch(number)
    return JsonResponse({"id": row[0], "name": row[1]})


def with_database(request: HttpRequest, number: int) -> JsonResponse:
    """Answer what the database says."""
    with connection.cursor() as cursor:
        cursor.execute(QUERY, (number,))
        row = cursor.fetchone()
    return JsonResponse({"id": row[0], "name": row[1]})


view = with_database if _database else with_libpq if LIBRARY == "libpq alone" else without
urlpatterns = [path("things/<int:number>", view)]
application = get_wsgi_application()
