"""Colour, and the place of the documentation."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "grey": "90"}


def paint(colour: str, text: str, stream: TextIO) -> str:
    """Return *text* in *colour* where *stream* is a terminal, NO_COLOR is not set, and TERM is not ``dumb``."""
    if stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return f"\033[{_CODES[colour]}m{text}\033[0m"
    return text


def documentation(page: str) -> str:
    """Return where *page* is: a link, where the project's metadata says where its documentation is."""
    from importlib.metadata import PackageNotFoundError, metadata  # only for an error: it takes longer than the rest

    try:
        links = metadata("pgmonkey").get_all("Project-URL") or []
    except PackageNotFoundError:  # a source tree that is not installed
        links = []
    for link in links:
        label, _, url = link.partition(", ")
        if label == "Documentation":
            return f"{url.rstrip('/')}/{page}"
    return f"docs/{page}"
