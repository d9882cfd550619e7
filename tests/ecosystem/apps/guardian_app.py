"""django-guardian: permissions on single objects, given and asked for in requests."""

import django_base

django_base.configure(
    __name__,
    [*django_base.AUTH, "guardian", "shop"],
    django_base.SESSIONS,
    AUTHENTICATION_BACKENDS=[
        "django.contrib.auth.backends.ModelBackend",
        "guardian.backends.ObjectPermissionBackend",
    ],
)

import django

django.setup()

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from guardian.decorators import permission_required
from guardian.shortcuts import assign_perm, get_objects_for_user, remove_perm
from shop.models import Thing


class AsUser:
    """Stands for a log-in: the header names the user."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        if name := request.headers.get("User"):
            request.user = User.objects.get_or_create(username=name)[0]
        return self.get_response(request)


django.conf.settings.MIDDLEWARE.append("guardian_app.AsUser")


def create(request, name):
    thing = Thing.objects.create(name=name)
    assign_perm("shop.change_thing", request.user, thing)
    if name == "forbidden":
        raise PermissionDenied
    return JsonResponse({"id": thing.pk}, status=201)


@permission_required("shop.change_thing", (Thing, "name", "name"), return_403=True)
def change(request, name):
    Thing.objects.filter(name=name).update(price=7)
    return JsonResponse({})


def hand_over(request, name, user):
    """Take the permission from one user and give it to another, in one transaction."""
    thing = Thing.objects.get(name=name)
    remove_perm("shop.change_thing", request.user, thing)
    assign_perm("shop.change_thing", User.objects.get_or_create(username=user)[0], thing)
    return JsonResponse({}, status=200 if user != "nobody" else 409)


def mine(request):
    things = get_objects_for_user(request.user, "shop.change_thing")
    return JsonResponse({"names": sorted(things.values_list("name", flat=True))})


urlpatterns = [
    *django_base.urlpatterns,
    path("create/<name>", create),
    path("change/<name>", change),
    path("hand_over/<name>/<user>", hand_over),
    path("mine", mine),
]
application = get_wsgi_application()
