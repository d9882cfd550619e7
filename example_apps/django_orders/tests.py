"""``python -m example_apps.django_orders.manage test --parallel 2``."""

from typing import Any

from django.test import TestCase, TransactionTestCase

from .models import Product, Purchase


def order(test: Any, quantity: int) -> Any:
    product = Product.objects.create(name="Lamp", price_cents=1000, stock=3)
    body = {"customer": "Ann", "lines": [{"product_id": product.pk, "quantity": quantity}]}
    return test.client.post("/api/orders", body, content_type="application/json")


class Orders(TestCase):
    def test_an_order_is_written(self) -> None:
        self.assertEqual(order(self, 2).status_code, 201)
        self.assertEqual(Purchase.objects.get().total_cents, 2000)
        self.assertEqual(Product.objects.get().stock, 1)


class RefusedOrders(TransactionTestCase):
    def test_an_order_that_is_out_of_stock_leaves_nothing(self) -> None:
        self.assertEqual(order(self, 4).status_code, 409)
        self.assertFalse(Purchase.objects.exists())
        self.assertEqual(Product.objects.get().stock, 3)
