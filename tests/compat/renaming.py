"""Rename one internal of psycopg at a time, as a release might, and see what becomes of pgmonkey's behaviour.

``python -m tests.compat.renaming [NAME ...]`` works in copies of the installed psycopg, whose Python implementation
runs.  Wanted of every name: that all is right, or one clear line that names psycopg's version and what is missing;
never another result, never a mere traceback, never a hang.  The exit status is 1 if anything else happens.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import psycopg

from pgmonkey._driver.compat import PRIVATE_NAMES

from .behaviour import PATIENCE
from .checking import server

HERE = Path(__file__).resolve().parent
GOOD = ("right", "clear", "absent")
COMPOSED = re.compile(r"getattr\(self, (f\"[^\"]*\")\)")
"""Where psycopg makes a name out of others: ``_commit_gen`` and ``_rollback_gen``."""
LONG = 300
"""Characters of what differs that are printed."""


WORDS = {"NO", "YES", "clear", "convert", "dump", "formats", "get", "params", "query", "types"}
NAMES = [name for name in PRIVATE_NAMES if name not in WORDS]
"""What is renamed; not plain words, which other things have for a name, too."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of pgmonkey when psycopg has another *name* for something."""

    name: str
    kind: str
    """right: all is as ever, but for one warning that says why.  clear: it refuses, in one line that says why.
    absent: there is no such name.

    wrong: something behaves differently, or is said in other words.  crash: it fails and does not say why.  hang: it
    took too long.  unusable: psycopg itself does not work with the new name, so this says nothing.
    """
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether users can live with that."""
        return self.kind in GOOD

    def __str__(self) -> str:
        detail = self.detail if len(self.detail) <= LONG else f"{self.detail[:LONG]} ..."
        return f"{self.name:24}{self.kind:10}{detail}".rstrip()


class Copies:
    """Copies of the installed psycopg, below *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._source = folder / "psycopg"
        self._program = folder / "program"
        shutil.copytree(Path(psycopg.__file__).parent, self._source)
        shutil.copytree(HERE, self._program / "compat")
        # Each copy shares the bytecode of what is not changed in it.
        for source in (self._source, self._program):
            compileall.compile_dir(source, quiet=1)
        info = distribution("psycopg").locate_file(f"psycopg-{psycopg.__version__}.dist-info")
        self._info = Path(str(info))

    def outcome(self, name: str) -> Outcome:
        """Rename *name* in a copy and check the behaviour with that."""
        copy = self._folder / f"without {name}"
        shutil.copytree(self._source, copy / "psycopg", copy_function=os.link)
        shutil.copytree(self._info, copy / self._info.name)
        try:
            return self._run(name, copy) if _rename(name, copy / "psycopg") else Outcome(name, "absent")
        finally:
            shutil.rmtree(copy)

    def _run(self, name: str, copy: Path) -> Outcome:
        environ = {**os.environ, "PYTHONPATH": str(copy), "PSYCOPG_IMPL": "python", "PYTHONDONTWRITEBYTECODE": "1"}
        # The program's folder comes first, as the current one, and has nothing else in it.
        command = [sys.executable, "-m", "compat.behaviour"]
        try:
            run = subprocess.run(
                command, cwd=self._program, env=environ, capture_output=True, text=True, timeout=PATIENCE + 15
            )
        except subprocess.TimeoutExpired:
            return Outcome(name, "hang", "and does not even notice")
        return judge(name, run.stdout.splitlines(), run.stderr.splitlines())


def _rename(name: str, package: Path) -> bool:
    """Give *name* another one wherever it is used in *package*, also as a module; tell whether it is used."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    other = f"{name}_2"
    used = False
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        renamed = word.sub(other, text)
        renamed = COMPOSED.sub(rf'getattr(self, \1.replace("{name}", "{other}"))', renamed)
        if renamed != text:
            used = used or word.search(text) is not None
            path.unlink()  # it is shared with the other copies
            path.write_text(renamed, encoding="utf-8")
    for path in [*package.rglob(f"{name}.py")]:
        path.rename(path.with_name(f"{other}.py"))
    return used


def judge(name: str, said: list[str], warned: list[str]) -> Outcome:
    """Return what came of it: the program *said* this on its standard output, and *warned* of that on the other."""
    line = said[-1] if said else ""
    if line.startswith("psycopg="):
        return Outcome(name, "unusable", line)
    if "hang=" in line:
        return Outcome(name, "hang", line)
    if not line:
        return Outcome(name, "crash", warned[-1] if warned else "without a word")
    if line.startswith("refused="):
        clear = len(said) == 1 and not warned and _is_clear(name, line)
        return Outcome(name, "clear" if clear else "crash", line)
    if line != "OK" or len(said) > 1:
        return Outcome(name, "wrong", "  ".join(said))
    if warned:
        clear = len(warned) == 1 and _is_clear(name, warned[0])
        return Outcome(name, "right" if clear else "wrong", "and says " + " | ".join(warned))
    return Outcome(name, "right")


def _is_clear(name: str, line: str) -> bool:
    """Tell whether *line* lets its reader know what to do: which version it is, and what is missing in it."""
    return f"psycopg {psycopg.__version__}" in line and re.search(rf"\b{re.escape(name)}\b", line) is not None


def main(arguments: list[str]) -> int:
    """Print the outcome of each name as soon as it is there; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.renaming", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to rename; all that pgmonkey uses by default")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    options = parser.parse_args(arguments)
    with server(), tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        outcomes = []
        for outcome in pool.map(Copies(Path(folder)).outcome, options.names or NAMES):
            outcomes.append(outcome)
            print(outcome, flush=True)
    bad = [outcome.name for outcome in outcomes if not outcome.good]
    print(f"psycopg {psycopg.__version__}: {len(outcomes) - len(bad)} of {len(outcomes)} names may go", *bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
