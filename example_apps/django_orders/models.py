from django.db import models
from django.db.models.functions import Now


class Product(models.Model):
    name = models.TextField()
    price_cents = models.IntegerField()
    stock = models.IntegerField()

    class Meta:
        db_table = "product"
        ordering = ("id",)


class Purchase(models.Model):
    customer = models.TextField()
    placed_at = models.DateTimeField(db_default=Now())
    total_cents = models.IntegerField()

    class Meta:
        db_table = "purchase"
        ordering = ("-id",)


class Line(models.Model):
    purchase = models.ForeignKey(Purchase, models.PROTECT, related_name="lines", db_index=False)
    product = models.ForeignKey(Product, models.PROTECT, related_name="+", db_index=False)
    quantity = models.IntegerField()
    price_cents = models.IntegerField()

    class Meta:
        db_table = "line"
        ordering = ("id",)

    @property
    def name(self) -> str:
        return self.product.name
