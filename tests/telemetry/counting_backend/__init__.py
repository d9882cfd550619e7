"""A backend of django-prometheus."""
