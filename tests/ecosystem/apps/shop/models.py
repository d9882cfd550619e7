"""The things that the Django applications write."""

from django.db import models


class Thing(models.Model):
    name = models.TextField(unique=True)
    price = models.IntegerField(default=1)
