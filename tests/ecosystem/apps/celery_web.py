"""A view that sends a task once its transaction is committed."""

import celery_app  # configures Django
import django_base
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from shop.models import Thing


def order(request, name):
    thing = Thing.objects.create(name=name)
    celery_app.create.delay_on_commit(f"task of {name} {thing.pk}")
    return HttpResponse(status=int(request.GET["status"]))


urlpatterns = [*django_base.urlpatterns, path("order/<name>", order)]
application = get_wsgi_application()
