"""The backend, where Django looks for it when the ENGINE is ``django_pgmonkey.postgresql``."""

from django_pgmonkey.base import DatabaseWrapper

__all__ = ["DatabaseWrapper"]
