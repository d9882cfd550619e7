"""Django REST framework: a view set, tokens, and an exception handler that always answers 200."""

import django_base

django_base.configure(
    __name__,
    [*django_base.AUTH, "rest_framework", "rest_framework.authtoken", "shop"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.TokenAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticatedOrReadOnly"],
        "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination",
        "PAGE_SIZE": 2,
        "EXCEPTION_HANDLER": "drf_app.answer",
    },
)

import django

django.setup()

from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, transaction
from django.urls import include, path
from rest_framework import routers, serializers, viewsets
from rest_framework.authtoken.views import obtain_auth_token
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, PermissionDenied, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler, set_rollback
from shop.models import Thing


class AlwaysOkError(APIException):
    """An error whose status is in the body, as some interfaces have it."""


def answer(error, context):
    if isinstance(error, IntegrityError):
        set_rollback()
        return Response({"detail": "is there already"}, status=409)
    response = exception_handler(error, context)
    if isinstance(error, AlwaysOkError):
        response.status_code = 200
    return response


class ThingSerializer(serializers.ModelSerializer):
    class Meta:
        model = Thing
        fields = ["id", "name", "price"]

    def validate_price(self, value):
        if value < 0:
            raise serializers.ValidationError("below zero")
        return value


class Things(viewsets.ModelViewSet):
    queryset = Thing.objects.order_by("id")
    serializer_class = ThingSerializer

    @action(detail=False, methods=["post"], url_path="refused/(?P<way>[a-z-]+)")
    def refused(self, request, way):
        """Write, and then refuse in one of the ways that the framework has."""
        Thing.objects.create(name=way)
        if way == "denied":
            raise PermissionDenied
        if way == "invalid":
            raise ValidationError({"name": "no"})
        if way == "always-ok":
            raise AlwaysOkError("not so")
        if way == "missing":
            self.queryset.get(name="no such thing")  # not an error that the framework knows
        if way == "duplicate":
            Thing.objects.create(name=way)
        return Response({}, status=402)

    @action(detail=False, methods=["post"])
    def many(self, request):
        """Create all of a list, or nothing of it."""
        serializer = self.get_serializer(data=request.data, many=True)
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            serializer.save()
        return Response(serializer.data, status=201)


router = routers.DefaultRouter()
router.register("things", Things)
urlpatterns = [*django_base.urlpatterns, path("token/", obtain_auth_token), path("", include(router.urls))]
application = get_wsgi_application()
