"""django-allauth: sign-up and log-in through its pages, with a hook that may refuse."""

import django_base

django_base.configure(
    __name__,
    [*django_base.AUTH, "allauth", "allauth.account", "shop"],
    [
        *django_base.SESSIONS,
        "django.middleware.csrf.CsrfViewMiddleware",
        "allauth.account.middleware.AccountMiddleware",
    ],
    AUTHENTICATION_BACKENDS=["allauth.account.auth_backends.AuthenticationBackend"],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    LOGIN_REDIRECT_URL="/me",
    ACCOUNT_SIGNUP_FIELDS=["username*", "email*", "password1*"],
    ACCOUNT_LOGIN_METHODS={"username", "email"},
    ACCOUNT_EMAIL_VERIFICATION="none",
    ACCOUNT_RATE_LIMITS=False,
    EMAIL_BACKEND="django.core.mail.backends.dummy.EmailBackend",
)

import django

django.setup()

from allauth.account.signals import user_signed_up
from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.dispatch import receiver
from django.http import JsonResponse
from django.urls import include, path
from shop.models import Thing


@receiver(user_signed_up)
def welcome(request, user, **more):
    Thing.objects.create(name=f"present for {user.username}")
    if user.username == "forbidden":
        raise PermissionDenied


def me(request):
    return JsonResponse({"name": request.user.get_username()})


urlpatterns = [*django_base.urlpatterns, path("me", me), path("accounts/", include("allauth.urls"))]
application = get_wsgi_application()
