"""How processes of one user ask each other how their pools are: a socket for each, in a folder that is theirs alone.

Nobody else can enter the folder.  A process answers as long as it lives; whoever asks removes what dead ones have left.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from time import monotonic, sleep
from typing import Any

logger = logging.getLogger("pgmonkey")

FOLDER = "PGMONKEY_LIVE_DIR"
"""The variable that names the folder; by default it is pgmonkey-UID in the folder for temporary files."""
_SUFFIX = ".sock"
# Seconds for all answers together, and for sending one.
_PATIENCE = 2.0
# Seconds until it is tried again to hear who asks.
_PAUSE = 0.2
# Bytes of an answer.
_LONGEST = 8 * 2**20


def folder() -> str:
    """Return the folder of the sockets."""
    return os.environ.get(FOLDER) or os.path.join(tempfile.gettempdir(), f"pgmonkey-{os.geteuid()}")


def _check(path: str, *, look: bool = False) -> None:
    """Raise OSError unless *path* is a folder that only this user can enter; to *look*, the superuser may, too."""
    status = os.lstat(path)
    owners = (os.geteuid(),) if not look or os.geteuid() else (0, status.st_uid)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners or status.st_mode & 0o077:
        raise PermissionError(f"{path!r} is no folder that only this user can enter: remove it, or set {FOLDER}")


class Server:
    """Answers each connection with what *answer* returns, as JSON, in a thread that waits for nothing else."""

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self._answer = answer
        self._pid = 0
        self._socket: socket.socket | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def start(self) -> bool:
        """Answer from now on, unless this process does so already; tell whether it does."""
        if self._pid != os.getpid():
            self._forget()
            self._pid = os.getpid()
            try:
                self._socket = self._listen()
            except (OSError, AttributeError, RuntimeError) as error:  # no sockets of Unix, no more threads
                logger.warning("'pgmonkey top' will not see this process: %s", error)
        return self._socket is not None

    def _forget(self) -> None:
        """Leave the socket to the parent process: as long as it is open here, the parent would seem to live."""
        inherited, self._socket, self._pid = self._socket, None, 0
        if inherited is not None:
            inherited.close()

    def _listen(self) -> socket.socket:
        path = folder()
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        _check(path)
        name = os.path.join(path, f"{os.getpid()}-{secrets.token_hex(4)}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.settimeout(None)  # whatever the program's default is
        try:
            listening.bind(f"{name}.new")
            os.chmod(f"{name}.new", 0o600)
            listening.listen(8)
            # By its name it is asked, and removed where nobody listens.
            os.rename(f"{name}.new", name + _SUFFIX)
            thread = threading.Thread(target=self._serve, args=(listening,), name="pgmonkey live view", daemon=True)
            Context().run(thread.start)  # as that of upkeep
        except BaseException:
            listening.close()
            for suffix in (".new", _SUFFIX):
                with suppress(OSError):
                    os.unlink(name + suffix)
            raise
        atexit.register(_remove, name + _SUFFIX, os.getpid())
        return listening

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                asking, _ = listening.accept()
            except OSError:
                if listening.fileno() < 0:  # it is closed
                    return
                sleep(_PAUSE)  # the process has no descriptor left
                continue
            with asking:
                try:
                    asking.settimeout(_PATIENCE)
                    asking.sendall(json.dumps(self._answer()).encode())
                except OSError:
                    pass  # whoever has asked is gone
                except Exception as error:
                    logger.warning("'pgmonkey top' was not answered: %r", error)


def _remove(path: str, pid: int) -> None:
    if pid == os.getpid():
        with suppress(OSError):
            os.unlink(path)


def ask_all(path: str | None = None) -> list[dict[str, Any]]:
    """Return what each process says that answers in the folder *path*, by default that of this user.

    Raises PermissionError for a folder that others can enter.
    """
    path = path or folder()
    try:
        _check(path, look=True)
        names = sorted(name for name in os.listdir(path) if name.endswith(_SUFFIX))
    except FileNotFoundError:
        return []
    deadline = monotonic() + _PATIENCE
    connected = list(_connect(path, names, deadline))
    answers = []
    for asked in connected:
        with asked, suppress(OSError, ValueError):  # it has ended, or takes too long
            answer = json.loads(_read(asked, deadline))
            if isinstance(answer, dict) and isinstance(answer.get("pools"), list):
                answers.append(answer)
    return answers


def _connect(path: str, names: list[str], deadline: float) -> Iterator[socket.socket]:
    for name in names:
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        asked.settimeout(max(deadline - monotonic(), 0.01))
        try:
            asked.connect(os.path.join(path, name))
        except ConnectionRefusedError:  # nobody listens, so the process is dead
            asked.close()
            with suppress(OSError):
                os.unlink(os.path.join(path, name))
        except OSError:
            asked.close()
        else:
            yield asked


def _read(asked: socket.socket, deadline: float) -> bytes:
    parts, size = [], 0
    while size < _LONGEST:
        asked.settimeout(max(deadline - monotonic(), 0.01))
        part = asked.recv(2**16)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)
