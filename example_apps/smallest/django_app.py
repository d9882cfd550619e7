"""The smallest application on Django: ``DATABASE_URL=postgresql://... python django_app.py runserver``."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path

DATABASE = {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["DATABASE_URL"]}}
MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware"]
settings.configure(DEBUG=True, ROOT_URLCONF=__name__, DATABASES={"default": DATABASE}, MIDDLEWARE=MIDDLEWARE)


def greet(request: HttpRequest, name: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS visitor (name text)")
        cursor.execute("INSERT INTO visitor VALUES (%s)", [name])
        cursor.execute("SELECT count(*) FROM visitor")
        return HttpResponse(f"Hello {name}, you are number {cursor.fetchone()[0]}")


urlpatterns = [path("<str:name>", greet)]
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
