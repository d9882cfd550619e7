"""django-ninja: schemas, its own exception handlers, synchronous operations."""

import django_base

django_base.configure(__name__, ["shop"])

import django

django.setup()

from django.core.wsgi import get_wsgi_application
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.urls import path
from ninja import ModelSchema, NinjaAPI, Schema
from ninja.errors import HttpError
from shop.models import Thing

api = NinjaAPI()


class ThingIn(Schema):
    name: str
    price: int = 1


class ThingOut(ModelSchema):
    class Meta:
        model = Thing
        fields = ["id", "name", "price"]


class OutOfStockError(Exception):
    pass


@api.exception_handler(IntegrityError)
def duplicate(request, error):
    return api.create_response(request, {"detail": "is there already"}, status=409)


@api.exception_handler(OutOfStockError)
def out_of_stock(request, error):
    # Within the view still, and so within its transaction.
    return api.create_response(request, {"things": Thing.objects.count()}, status=422)


class LateError(Exception):
    pass


@api.exception_handler(LateError)
def late(request, error):
    if str(error) == "note":
        Thing.objects.create(name="a note")
    return api.create_response(request, {"things": Thing.objects.count() if str(error) != "async" else 0}, status=200)


@api.exception_handler(DatabaseError)
def everything(request, error):
    return api.create_response(request, {"detail": "sorry"}, status=500)


@api.post("/late/{how}", response=dict)
def raise_late(request, how: str):
    Thing.objects.create(name=how)
    raise HttpError(202, how) if how == "accepted" else LateError(how)


@api.post("/late-async", response=dict)
async def raise_late_async(request):
    await Thing.objects.acreate(name="async")
    raise LateError("async")


@api.post("/things", response={201: ThingOut})
def create(request, thing: ThingIn):
    return 201, Thing.objects.create(**thing.dict())


@api.get("/things", response=list[ThingOut])
def things(request):
    return Thing.objects.order_by("id")


@api.post("/refused/{way}", response={201: ThingOut, 402: dict})
def refused(request, way: str, thing: ThingIn):
    """Write, and then refuse in one of the ways that ninja has."""
    made = Thing.objects.create(**thing.dict())
    if way == "http-error":
        raise HttpError(403, "not for you")
    if way == "handler":
        raise OutOfStockError
    if way == "status":
        return 402, {"detail": "pay first"}
    if way == "response":
        return 201, {"not": "a thing"}  # does not fit the schema: ninja raises after the view
    return 201, made


@api.post("/nested", response={201: dict})
def nested(request, thing: ThingIn):
    """Keep the first although a savepoint fails."""
    Thing.objects.create(**thing.dict())
    try:
        with transaction.atomic():
            Thing.objects.create(**thing.dict())
    except IntegrityError:
        pass
    return 201, {"things": Thing.objects.count()}


@api.post("/buy/{name}", response=dict)
def buy(request, name: str):
    """Raise the price under a lock, for many at the same time."""
    thing = Thing.objects.select_for_update().get(name=name)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.002)")
    thing.price += 1
    thing.save()
    return {"price": thing.price}


urlpatterns = [*django_base.urlpatterns, path("api/", api.urls)]
application = get_wsgi_application()
