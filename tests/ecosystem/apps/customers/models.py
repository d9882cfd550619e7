"""The tenants of the django-tenants application."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    name = models.TextField()


class Domain(DomainMixin):
    pass
