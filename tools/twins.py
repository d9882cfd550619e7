"""Write the synchronous twin of every asynchronous source: ``python tools/twins.py``, or ``--check`` to only compare.

Every file in a folder ``_async`` is a source; its twin has the same name in the folder ``_sync`` beside it. The pairs
in BY_HAND are written by hand. The check fails on a twin that is stale, on one that has no source, and on a rule or a
pair by hand that nothing uses.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pgmonkey", "tests")
BY_HAND = {
    "pgmonkey/_async/__init__.py",
    "pgmonkey/_async/waiting.py",
    "pgmonkey/_async/watcher.py",
    "tests/_async/concurrency.py",
}
HEADER = "# Generated from {source} by tools/twins.py: change that file, then run the tool.\n"

RULES = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\basynccontextmanager\b": "contextmanager",
    r"\bAbstractAsyncContextManager\b": "AbstractContextManager",
    r"\benter_async_context\b": "enter_context",
    r"\baclose\b": "close",
    r"\b__anext__\b": "__next__",
    r"\b__aiter__\b": "__iter__",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"\basync_pool\b": "pool",
    r"\b(_?)Async(?=[A-Z])": r"\1",
    r"(?<=\w)_async\b": "",
    r"\._async\b": "._sync",
}


def twin(text: str, used: set[str]) -> str:
    """Return the synchronous twin of *text*; add to *used* the rules that applied."""
    text = _unwrap_awaitables(text)
    for pattern, replacement in RULES.items():
        text, count = re.subn(pattern, replacement, text)
        if count:
            used.add(pattern)
    return text


def _unwrap_awaitables(text: str) -> str:
    """Replace ``Awaitable[X]`` and ``CoroutineType[Any, Any, X]`` by X."""
    while match := re.search(r"\b(Awaitable\[|CoroutineType\[Any, Any, )", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
        text = text[: match.start()] + text[match.end() : end - 1] + text[end:]
    return text


def tidy(path: Path, text: str) -> str:
    """Return *text* with unused imports removed and formatted as ruff formats the rest of the tree."""
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(path)]
    for command in (["check", "--select=F401,I", "--fix", "--quiet", *name, "-"], ["format", "--quiet", *name, "-"]):
        run = subprocess.run([*ruff, *command], input=text, capture_output=True, text=True, cwd=ROOT, check=True)
        text = run.stdout
    return text


def main(arguments: list[str]) -> int:
    """Write or check every twin; return the exit status."""
    problems: list[str] = []
    used: set[str] = set()
    twins: set[str] = set()
    paired: set[str] = set()
    for source in _python_files("_async"):
        name = source.relative_to(ROOT).as_posix()
        target = source.parents[1] / "_sync" / source.name
        paired.add(target.relative_to(ROOT).as_posix())
        if name in BY_HAND:
            continue
        twins.add(name)
        text = tidy(target, HEADER.format(source=name) + "\n" + twin(source.read_text(), used))
        if "--check" not in arguments:
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            problems.append(f"{target.relative_to(ROOT)} is stale: run python tools/twins.py")
    existing = {path.relative_to(ROOT).as_posix() for path in _python_files("_sync")}
    problems += [f"{path} has no source: delete it" for path in sorted(existing - paired)]
    for name in sorted(BY_HAND):
        if not (ROOT / name).exists() or name.replace("/_async/", "/_sync/") not in existing:
            problems.append(f"{name} is not a pair: correct BY_HAND")
    problems += [f"the rule {rule} is not used: delete it" for rule in RULES if rule not in used]
    print("\n".join(problems) or f"{len(twins)} twins are fresh")
    return 1 if problems else 0


def _python_files(folder_name: str) -> list[Path]:
    """Return the Python files in folders of that name."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob(f"{folder_name}/*.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
