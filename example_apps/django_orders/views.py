import json
from collections.abc import Iterator
from typing import Any

from django.db import connection
from django.db.models import F
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from .. import shop
from .models import Line, Product, Purchase


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return desk(request)


@require_POST
def place_from_form(request: HttpRequest) -> HttpResponse:
    try:
        order = place(*shop.parse_form(request.POST.dict()))
    except shop.BadOrder as error:
        return desk(request, error, 422)
    except shop.OutOfStock as error:
        return desk(request, error, 409)
    response = redirect(f"/orders/{order.pk}")
    response.status_code = 303
    return response


@require_GET
def detail(request: HttpRequest, order_id: int) -> HttpResponse:
    order = get_object_or_404(Purchase, pk=order_id)
    return render(request, "order.html", {"order": order, "lines": order.lines.select_related("product")})


@require_GET
def export(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        yield shop.CSV_HEADER
        fields = ("id", "customer", "placed_at", "total_cents")
        for row in Purchase.objects.order_by("id").values_list(*fields).iterator(1000):
            yield shop.csv_line(row)

    return StreamingHttpResponse(lines(), content_type="text/csv")


@csrf_exempt
@require_http_methods(["GET", "POST"])
def api_orders(request: HttpRequest) -> JsonResponse:
    if request.method == "GET":
        return JsonResponse({"orders": list(Purchase.objects.values()[:100])})
    try:
        # A form of another site cannot send JSON: so no token is needed here.
        sent = json.loads(request.body) if request.content_type == "application/json" else None
        order = place(*shop.parse_order(sent))
    except (ValueError, RecursionError) as error:
        return JsonResponse({"detail": str(error)}, status=422)
    except shop.OutOfStock as error:
        return JsonResponse({"detail": str(error)}, status=409)
    return JsonResponse(summary(order), status=201)


@require_GET
def api_detail(request: HttpRequest, order_id: int) -> JsonResponse:
    order = get_object_or_404(Purchase, pk=order_id)
    lines = order.lines.values("quantity", "price_cents", name=F("product__name"))
    return JsonResponse({**summary(order), "placed_at": order.placed_at, "lines": list(lines)})


def summary(order: Purchase) -> dict[str, Any]:
    return {"id": order.pk, "customer": order.customer, "total_cents": order.total_cents}


def desk(request: HttpRequest, error: Exception | None = None, status: int = 200) -> HttpResponse:
    context = {"products": Product.objects.all(), "orders": Purchase.objects.all()[:20], "error": error}
    return render(request, "index.html", {**context, "typed": request.POST}, status=status)


@atomic
def place(customer: str, lines: list[tuple[int, int]]) -> Purchase:
    """Write the order and take its lines from stock, or raise OutOfStock and leave nothing behind."""
    order = Purchase.objects.create(customer=customer, total_cents=0)
    for product_id, quantity in lines:
        products = Product.objects.filter(pk=product_id)
        if not products.filter(stock__gte=quantity).update(stock=F("stock") - quantity):
            raise shop.OutOfStock(product_id, quantity, products.values("name", "stock").first())
        product = products.get()
        Line.objects.create(purchase=order, product=product, quantity=quantity, price_cents=product.price_cents)
        order.total_cents += product.price_cents * quantity
    order.save(update_fields=["total_cents"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [shop.PLACED, str(order.pk)])
    return order
