"""The command ``pgmonkey``.

Exit status: 0 for success, 1 for an error (one line on stderr), 2 for wrong usage, 130 when interrupted.  What needs
psycopg, whose import takes most of the time, is imported when a command needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from .. import _NO_LIBPQ, __version__
from ._parser import build
from ._terminal import documentation, paint

__all__ = ["main"]

_shown: set[str] = set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, by default those of the process; return the exit status."""
    # Python has none where the descriptor is closed, as by a shell's ">&-".
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    options = build().parse(arguments)
    if options.version:
        print(f"pgmonkey {__version__}")
        return 0
    if options.run is None:
        options.parser.print_help()
        return 0
    # Python shows no DeprecationWarning outside __main__, but here the user of the old setting is the reader.
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", DeprecationWarning)
    module, _, function = options.run.partition(":")
    try:
        status: int = getattr(importlib.import_module(f".{module}", __name__), function)(options)
        sys.stdout.flush()  # here, where a reader that is gone is noticed
    except (KeyboardInterrupt, EOFError):  # Ctrl-C, or Ctrl-D for an answer
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails, too
        return 1
    except Exception as error:
        return _fail(error)
    return status


def _fail(error: Exception) -> int:
    if isinstance(error, ImportError) and "libpq" in str(error):
        text, page = _NO_LIBPQ, "cli.md"
    elif isinstance(error, UnicodeEncodeError):
        text, page = f"there is text that {error.encoding} cannot hold; set PYTHONIOENCODING=utf-8", "cli.md"
    else:
        import psycopg

        from .._config.redaction import redact_text
        from ..errors import ConfigError, PgmonkeyError

        if not isinstance(error, (PgmonkeyError, psycopg.Error, OSError)):
            raise error
        # One line for logs and scripts: libpq's messages have several.
        text = " ".join(redact_text(str(error)).split()) or type(error).__name__
        page = "cli.md"
        if isinstance(error, ConfigError):
            page = "configuration.md"
        elif isinstance(error, PgmonkeyError) and type(error) is not PgmonkeyError:
            name = next(base.__name__ for base in type(error).__mro__ if base.__module__ == PgmonkeyError.__module__)
            page = f"errors.md#{name.lower()}"
    print(f"{paint('red', 'pgmonkey:', sys.stderr)} {text}; see {documentation(page)}", file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    # Once, however often the file is read; without the place in pgmonkey's source, which Python would add.
    if str(message) not in _shown:
        _shown.add(str(message))
        print(f"{paint('yellow', 'pgmonkey: warning:', sys.stderr)} {message}", file=sys.stderr)
