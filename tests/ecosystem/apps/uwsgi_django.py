"""A Django application that has used its connection, and kept it, when uWSGI forks its workers."""

import os

import django_base
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import JsonResponse
from django.urls import path

django_base.configure(__name__, apps=())


def ask(text):
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::text, pg_backend_pid()", [text])
        return cursor.fetchone()


def echo(request, text=""):
    row = ask(text)
    return JsonResponse({"text": row[0], "backend": row[1], "worker": os.getpid()})


urlpatterns = [path("", echo), path("<text>", echo)]
app = get_wsgi_application()
for _ in range(9):
    ask("warm")
