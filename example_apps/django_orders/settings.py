"""The order desk on Django: ``gunicorn example_apps.django_orders.wsgi``."""

import os
import secrets

from .. import shop

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY") or secrets.token_urlsafe()
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DATABASES = {"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": shop.CONFIG, "resolve_env": True}}}
INSTALLED_APPS = ["django_pgmonkey", "example_apps.django_orders.apps.OrdersConfig"]
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "example_apps.django_orders.pages.Problems",
    "django_pgmonkey.middleware.TransactionMiddleware",
]
ROOT_URLCONF = "example_apps.django_orders.urls"
WSGI_APPLICATION = "example_apps.django_orders.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.jinja2.Jinja2",
        "DIRS": [shop.TEMPLATES],
        "OPTIONS": {"context_processors": ["example_apps.django_orders.pages.context"]},
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
