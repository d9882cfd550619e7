"""The shop on Django with the panel: ``gunicorn example_apps.panel.django_wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

from .watching import wsgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_apps.panel.django_settings")
application = wsgi(get_wsgi_application())
