"""Celery's applications: tasks with a broker in the folder that they run in."""

from pathlib import Path

import django_base

globals().update(django_base.options("celery_web", ["django_celery_beat", "shop"]))
CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {}
for _name in ("data_folder_in", "data_folder_out", "control_folder", "processed_folder"):
    _folder = Path("broker", "control" if _name == "control_folder" else "queue")
    _folder.mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS[_name] = str(_folder)
CELERY_TASK_ACKS_LATE = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
