"""PostgreSQL for Django: ``"ENGINE": "django_pgmonkey", "OPTIONS": {"config": BASE_DIR / "config.yaml"}``."""

try:
    import django  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "django_pgmonkey needs Django: pip install 'pgmonkey[django]'", name=error.name
    ) from error
