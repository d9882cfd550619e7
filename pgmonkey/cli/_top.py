"""``pgmonkey top``: the pools of all processes, again and again."""

from __future__ import annotations

import argparse
import shutil
import sys
from time import sleep, strftime

from .._telemetry.sockets import ask_all, folder
from .._telemetry.view import as_text, views
from ._terminal import paint

# Clears the screen, from the top left corner on.
_HOME, _REST = "\033[H", "\033[J"
_END_OF_LINE = "\033[K"


def run(options: argparse.Namespace) -> int:
    """Show the pools until Ctrl-C, or once where stdout is no terminal."""
    once = options.once or not sys.stdout.isatty()
    while True:
        lines = _lines(options)
        if once:
            print("\n".join(lines))
            return 0
        size = shutil.get_terminal_size()
        shown = [line[: size.columns] for line in lines[: size.lines - 1]]
        painted = [line if line.startswith(" ") else paint("green", line, sys.stdout) for line in shown]
        sys.stdout.write(_HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in painted) + _REST)
        sys.stdout.flush()
        sleep(options.every)


def _lines(options: argparse.Namespace) -> list[str]:
    answers = ask_all(options.folder)
    found = views(answers, options.pool and {f"pool {name!r}" for name in options.pool})
    heading = f"{strftime('%H:%M:%S')}  {len(answers)} process{'es' * (len(answers) != 1)}"
    if found:
        return [heading, "", *as_text(found)]
    where = options.folder or folder()
    return [
        heading,
        "",
        f"No process of this user answers in {where}.",
        "A pool is seen here once it is used and its file says, in connection_settings, 'live_view: true'.",
    ]
