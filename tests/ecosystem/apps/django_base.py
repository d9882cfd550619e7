"""What the Django applications have in common: the settings, and a view of the pool's figures."""

import os

from django.conf import settings
from django.db import connection
from django.http import JsonResponse
from django.urls import path

AUTH = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages"]


def configure(urls, apps=(), middleware=(), **more):
    """Configure Django for one application over the backend, with a transaction a request."""
    database = {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["CONFIG"]}}
    options = {
        "SECRET_KEY": "ecosystem",
        "ALLOWED_HOSTS": ["*"],
        "ROOT_URLCONF": urls,
        "DATABASES": {"default": {**database, **more.pop("database", {})}},
        "INSTALLED_APPS": list(apps),
        "MIDDLEWARE": ["django_pgmonkey.middleware.TransactionMiddleware", *middleware],
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "USE_TZ": True,
    }
    settings.configure(**{**options, **more})


def stats(request):
    return JsonResponse(connection.pool.stats())


urlpatterns = [path("stats", stats)]
