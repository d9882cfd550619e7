"""The command ``pgmonkey``.  Exit status: 0 for success, 1 for an error (one line on stderr), 2 for wrong usage."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import psycopg

from .._config.redaction import redact_text
from ..errors import PgmonkeyError
from . import pgconfig

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(prog="pgmonkey", description="PostgreSQL connections from one YAML file.")
    groups = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    pgconfig.add_commands(groups)
    options = parser.parse_args(arguments)
    # Python shows no DeprecationWarning outside __main__, but here the user of the old setting is the reader.
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", DeprecationWarning)
    try:
        status: int = options.run(options)
    except (PgmonkeyError, psycopg.Error, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    return status


def _fail(error: Exception) -> int:
    # One line for logs and scripts: libpq's messages have several.
    text = " ".join(redact_text(str(error)).split()) or type(error).__name__
    print(f"pgmonkey: {text}", file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    # Without the place in pgmonkey's source, which Python would add.
    print(f"pgmonkey: warning: {message}", file=sys.stderr)
