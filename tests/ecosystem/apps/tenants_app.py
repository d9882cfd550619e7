"""django-tenants on the backend: a schema a tenant, chosen by the host name."""

import django_base

SHARED = ["django_tenants", "customers", "django.contrib.contenttypes"]
django_base.configure(
    __name__,
    [*SHARED, "shop"],
    ["django_tenants.middleware.main.TenantMainMiddleware"],
    engine="django_tenants.postgresql_backend",
    ORIGINAL_BACKEND="django_pgmonkey",
    DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    SHARED_APPS=SHARED,
    TENANT_APPS=["shop"],
    TENANT_MODEL="customers.Client",
    TENANT_DOMAIN_MODEL="customers.Domain",
)

import django

django.setup()

from customers.models import Client, Domain
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, connection, transaction
from django.http import JsonResponse
from django.urls import path
from django_tenants.utils import schema_context, tenant_context
from shop.models import Thing


def make_tenants():
    """Make the public tenant and two others, with their tables."""
    for name in ("public", "red", "blue"):
        client = Client.objects.create(schema_name=name, name=name)
        Domain.objects.create(domain=f"{name}.test", tenant=client, is_primary=True)


def create(request, name):
    status = int(request.GET.get("status", 201))
    Thing.objects.create(name=name)
    return JsonResponse({"things": Thing.objects.count()}, status=status)


def after_an_error(request, name):
    """Write in the tenant's schema after a savepoint was rolled back."""
    try:
        with transaction.atomic():
            Thing.objects.create(name=name)
            Thing.objects.create(name=name)
    except IntegrityError:
        pass
    Thing.objects.create(name=f"{name} again")
    return JsonResponse({"schema": connection.schema_name}, status=201)


def everywhere(request, name):
    """Write in each tenant's schema, in one transaction."""
    for tenant in Client.objects.exclude(schema_name="public"):
        with tenant_context(tenant):
            Thing.objects.create(name=name)
    with schema_context("public"):
        tenants = Client.objects.count()
    return JsonResponse({"tenants": tenants}, status=int(request.GET.get("status", 201)))


def seen(request):
    names = list(Thing.objects.order_by("id").values_list("name", flat=True))
    with connection.cursor() as cursor:
        cursor.execute("SHOW search_path")
        return JsonResponse({"names": names, "path": cursor.fetchone()[0], "schema": connection.schema_name})


def cursors(request):
    """Read with a server-side cursor."""
    return JsonResponse({"names": [thing.name for thing in Thing.objects.order_by("id").iterator(chunk_size=2)]})


urlpatterns = [
    *django_base.urlpatterns,
    path("create/<name>", create),
    path("after_an_error/<name>", after_an_error),
    path("everywhere/<name>", everywhere),
    path("seen", seen),
    path("cursors", cursors),
]
application = get_wsgi_application()
