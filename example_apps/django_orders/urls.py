from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("orders", views.place_from_form),
    path("orders/<int:order_id>", views.detail),
    path("orders.csv", views.export),
    path("api/orders", views.api_orders),
    path("api/orders/<int:order_id>", views.api_detail),
]
