"""Applications in other processes: a header tells the sandbox of each request.

The header counts only where the application was started with `environ`; elsewhere nothing looks at it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict

from ._redirection import Redirection, SandboxError, in_context, look_always

HEADER = "X-Pgmonkey-Sandbox"
"""The request header that names the sandbox, for an application in another process."""
VARIABLE = "PGMONKEY_TESTING"
SECRET = secrets.token_urlsafe(24)
"""What an application that this process starts for its tests is to know."""
# As many sandboxes are remembered; one test has one, and few tests run at a time.
_MANY = 32

_visited: OrderedDict[str, Redirection] = OrderedDict()
_lock = threading.Lock()


def environ() -> dict[str, str]:
    """Return the variables with which to start an application that is to accept the headers of sandboxes."""
    return {VARIABLE: SECRET}


def visit(told: str | None) -> None:
    """Let the current context be in the sandbox that *told*, the value of the header, tells; in none when None.

    For servers of requests, before they use a database.  Raises `SandboxError` for a header of other tests, and always
    where the application was not started with `environ`.
    """
    sandbox = None
    if told is not None:
        port, secret, ours = (*told.split("."), "", "")[:3]
        expected = os.environ.get(VARIABLE, "")
        if not expected or not port.isdecimal() or not secrets.compare_digest(ours.encode(), expected.encode()):
            raise SandboxError("the header names a sandbox that this application was not started for")
        with _lock:
            sandbox = _visited.get(told)
            if sandbox is None:
                look_always()
                sandbox = _visited[told] = Redirection(int(port), secret)
            _visited.move_to_end(told)
            gone = _visited.popitem(last=False)[1] if len(_visited) > _MANY else None
        if gone is not None:
            gone.leave()
    in_context.set(sandbox)
