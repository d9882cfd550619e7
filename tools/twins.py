"""Write the synchronous twin of every asynchronous source: ``python tools/twins.py``, or ``--check`` to only compare.

A file in a folder ``_async`` is the source; its twin has the same name in the folder ``_sync`` beside it.  The pairs
in BY_HAND are written by hand.  The check fails on a twin that is stale, on one whose source is gone, and on a rule
that nothing uses.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pgmonkey",)
BY_HAND = {"pgmonkey/_async/waiting.py", "pgmonkey/_async/watcher.py"}
HEADER = "# Generated from ../_async/{source} by tools/twins.py: change that file, then run the tool.\n"

RULES = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\basynccontextmanager\b": "contextmanager",
    r"\bAbstractAsyncContextManager\b": "AbstractContextManager",
    r"\benter_async_context\b": "enter_context",
    r"\baclose\b": "close",
    r"\b__anext__\b": "__next__",
    r"\basync_pool\b": "pool",
    r"\b(_?)Async(?=[A-Z])": r"\1",
    r"(?<=\w)_async\b": "",
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
    """Replace ``Awaitable[X]`` and ``Coroutine[Any, Any, X]`` by X."""
    while match := re.search(r"\b(Awaitable\[|Coroutine\[Any, Any, )", text):
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
    twins: set[Path] = set()
    for folder in FOLDERS:
        for source in sorted((ROOT / folder).rglob("_async/*.py")):
            if source.name == "__init__.py" or source.relative_to(ROOT).as_posix() in BY_HAND:
                continue
            target = source.parent.with_name("_sync") / source.name
            twins.add(target)
            header = HEADER.format(source=source.name)
            text = tidy(target, header + "\n" + twin(source.read_text(), used))
            if "--check" not in arguments:
                target.write_text(text)
            elif not target.exists() or target.read_text() != text:
                problems.append(f"{target.relative_to(ROOT)} is stale: run python tools/twins.py")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path not in twins and path.read_text().startswith(HEADER[:15]):
                problems.append(f"{path.relative_to(ROOT)} has no source any more: delete it")
    problems += [f"the rule {rule} is not used: delete it" for rule in RULES if rule not in used]
    print("\n".join(problems) or f"{len(twins)} twins are fresh")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
