"""The smallest application on Celery; messages are files."""

import os

from celery_tasks import app, greet

folder = os.environ["QUEUE"]
app.conf.broker_transport_options = {
    "data_folder_in": folder,
    "data_folder_out": folder,
    "control_folder": f"{folder}/control",
}

__all__ = ["app", "greet"]
