"""channels on daphne: consumers over web sockets and over HTTP, beside views."""

import django_base

django_base.configure(
    __name__,
    ["daphne", "channels", "shop"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)

import django

django.setup()

from channels.db import database_sync_to_async
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.db import IntegrityError, connection, transaction
from django.http import JsonResponse
from django.urls import path, re_path
from shop.models import Thing


def store(name):
    with transaction.atomic():
        Thing.objects.create(name=name)
        if name.startswith("refused"):
            raise ValueError(name)
    return Thing.objects.count()


class Asynchronous(AsyncJsonWebsocketConsumer):
    """Stores what it is told and tells all others."""

    async def connect(self):
        await self.channel_layer.group_add("all", self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard("all", self.channel_name)

    async def receive_json(self, content):
        try:
            await database_sync_to_async(store)(content["name"])
        except IntegrityError:
            await self.send_json({"error": "is there already"})
        except ValueError:
            await self.send_json({"error": "refused"})
        else:
            thing = await Thing.objects.aget(name=content["name"])  # the ORM's own
            await self.channel_layer.group_send("all", {"type": "stored", "name": thing.name})

    async def stored(self, event):
        await self.send_json({"stored": event["name"]})


class Synchronous(JsonWebsocketConsumer):
    """Each message is handled in a thread; an error of it ends the socket."""

    def receive_json(self, content):
        store(content["name"])
        self.send_json({"stored": content["name"]})


class OverHttp(AsyncHttpConsumer):
    """Answers without Django's handler, and so without its middlewares: each statement is its own transaction."""

    async def handle(self, body):
        name = self.scope["url_route"]["kwargs"]["name"]
        try:
            if name.startswith("orm"):
                await Thing.objects.acreate(name=name)
            else:
                await database_sync_to_async(store)(name)
        except ValueError:
            await self.send_response(409, b"refused")
        else:
            await self.send_response(201, b"stored")


def create(request, name):
    Thing.objects.create(name=name)
    return JsonResponse({}, status=int(request.GET.get("status", 201)))


async def create_async(request, name):
    await Thing.objects.acreate(name=name)
    return JsonResponse({"lent": connection.in_atomic_block}, status=int(request.GET.get("status", 201)))


urlpatterns = [
    *django_base.urlpatterns,
    path("create/<name>", create),
    path("create_async/<name>", create_async),
]
application = ProtocolTypeRouter(
    {
        "http": URLRouter([path("consumer/<name>", OverHttp.as_asgi()), re_path("", get_asgi_application())]),
        "websocket": URLRouter([path("async", Asynchronous.as_asgi()), path("sync", Synchronous.as_asgi())]),
    }
)
