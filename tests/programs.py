"""Programs, each run in a process of its own, which is forked from one that has imported what they need.

Importing psycopg, pgmonkey and Django takes most of a second, which hundreds of short programs need not spend each. A
program is executed in the module ``__main__`` and ends as the interpreter ends. What needs an interpreter that has done
nothing before, to see what it imports, is in tests/processes.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Each line of its input is a request; it answers with the number of the process, and then with its exit status.
SERVER = """
import gc, importlib, json, os, sys
def serve():
    for line in sys.stdin:
        request = json.loads(line)
        for name in request["imports"]:
            importlib.import_module(name)
        gc.freeze()  # or each program's end would look through all that was imported
        child = os.fork()
        if child == 0:
            return request
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()
request = serve()
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environ"])
for descriptor, path in enumerate(request["streams"]):
    opened = os.open(path, os.O_RDWR)
    os.dup2(opened, descriptor)
    os.close(opened)
sys.argv[:] = request["arguments"]
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
importlib.invalidate_caches()
program = compile(request["code"], request["file"], "exec")
"""
# The program is executed by the interpreter's main module, which has no other names.
COMMAND = "exec((lambda names: exec(__import__('sys').argv[1], names) or names['program'])({}))"


@functools.cache
def _server(flags: tuple[str, ...]) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, *flags, "-c", COMMAND, SERVER],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen[str]) -> None:
    server.communicate()


def run(
    *,
    code: str = "",
    file: str = "<string>",
    module: str = "",
    arguments: Sequence[object] = (),
    folder: Path,
    environ: Mapping[str, str] | None = None,
    imports: Sequence[str] = ("pgmonkey.cli._connect",),
    flags: tuple[str, ...] = ("-W", "error"),
    timeout: float = 90,
) -> subprocess.CompletedProcess[str]:
    """Run *code*, or *module* as ``python -m`` does, in a process that has imported *imports*."""
    with tempfile.TemporaryDirectory() as streams:
        output, errors = Path(streams, "stdout"), Path(streams, "stderr")
        output.touch()
        errors.touch()
        if module:
            code = f"import runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        request: dict[str, Any] = {
            "code": code,
            "file": file,
            "module": module,
            "arguments": [module or file, *map(str, arguments)],
            "folder": str(folder),
            "environ": dict(os.environ if environ is None else environ),
            "imports": list(imports),
            "streams": [os.devnull, str(output), str(errors)],
        }
        status = _run(_server(flags), request, timeout)
        return subprocess.CompletedProcess(request["arguments"], status, output.read_text(), errors.read_text())


def _run(server: subprocess.Popen[str], request: dict[str, Any], timeout: float) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    process = server.stdout.readline()
    assert process, f"these cannot be imported: {request['imports']}"
    timer = threading.Timer(timeout, os.kill, [int(process), signal.SIGKILL])
    timer.start()
    status = int(server.stdout.readline())
    timer.cancel()
    assert status != -signal.SIGKILL, f"it took longer than {timeout} s"
    return status
