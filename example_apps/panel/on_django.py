"""The shop on Django with the panel; its URLs."""

from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template import engines
from django.urls import path
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ..django_orders.urls import urlpatterns as shop_urls
from . import Panel
from .experiments import Experiment

panel = Panel("Django", "gunicorn", lambda: connection.pool.stats(), engines["jinja2"].env)


def find(name: str) -> Experiment:
    if name not in panel.experiments:
        raise Http404
    return panel.experiments[name]


@require_GET
def live(request: HttpRequest) -> HttpResponse:
    return render(request, "panel_live.html")


@require_http_methods(["GET", "POST"])
def show(request: HttpRequest, name: str) -> HttpResponse:
    experiment = find(name)
    if request.method == "GET":
        return render(request, "experiment.html", {"experiment": experiment})
    panel.press(name, request.headers["Cookie"], request.POST["csrfmiddlewaretoken"])
    response = redirect(f"/promises/{name}")
    response.status_code = 303
    return response


@require_POST
def act(request: HttpRequest, name: str) -> HttpResponse:
    with connection.cursor() as cursor:
        for statement in find(name).act:
            cursor.execute(statement, {"customer": request.POST["customer"]})
    return HttpResponse("Done.", status=201)


urlpatterns = [
    path("promises/live", live),
    path("promises/<str:name>", show),
    path("promises/<str:name>/act", act),
    *shop_urls,
]
