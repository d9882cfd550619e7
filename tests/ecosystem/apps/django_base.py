"""What the Django applications have in common: the settings, and a view of the pool's figures."""

import os

from django.conf import settings
from django.db import connection
from django.http import JsonResponse
from django.urls import path

AUTH = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages"]
SESSIONS = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


def options(urls, apps=("shop",), middleware=(), engine="django_pgmonkey", **more):
    """Return the settings of an application over the backend, with a transaction a request."""
    return {
        "SECRET_KEY": "ecosystem",
        "ALLOWED_HOSTS": ["*"],
        "ROOT_URLCONF": urls,
        "DATABASES": {"default": {"ENGINE": engine, "OPTIONS": {"config": os.environ["CONFIG"]}}},
        "INSTALLED_APPS": list(apps),
        "MIDDLEWARE": ["django_pgmonkey.middleware.TransactionMiddleware", *middleware],
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
        "USE_TZ": True,
        **more,
    }


def configure(urls, *arguments, **more):
    """Configure Django for an application in one file."""
    settings.configure(**options(urls, *arguments, **more))


def stats(request):
    """Answer with the pool's figures as they are without this request."""
    figures = connection.pool.stats()
    figures["pool_available"] += connection.connection is not None  # a middleware may have asked
    return JsonResponse(figures)


urlpatterns = [path("stats", stats)]
