"""The settings of the shop on Django, with the panel's URLs."""

from ..django_orders.settings import *  # noqa: F403

ROOT_URLCONF = "example_apps.panel.on_django"
WSGI_APPLICATION = "example_apps.panel.django_wsgi.application"
