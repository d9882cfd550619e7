"""The application: ``INSTALLED_APPS = ["django_pgmonkey", ...]`` brings the command ``manage.py pgmonkey``."""

from django.apps import AppConfig


class PGMonkeyConfig(AppConfig):
    """The application, which has no models."""

    name = "django_pgmonkey"
    verbose_name = "pgmonkey"
