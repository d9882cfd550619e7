"""A second name of the backend, for packages that look whether the ENGINE ends in ``.postgresql``."""
