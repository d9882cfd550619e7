from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "example_apps.django_orders"
    label = "orders"
