"""A sandbox: one transaction for all that an application does in it, rolled back at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from ._process import Remote
from ._redirection import Redirection, SandboxError, current, in_context, note_closed, note_open
from ._visits import HEADER, SECRET


class Statements:
    """What applications have done in a sandbox while it was counted."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._number: int = remote.ask("begin_counting")
        self._found: tuple[list[str], int, int] | None = None

    def _read(self) -> tuple[list[str], int, int]:
        return self._found or self._remote.ask("read_count", number=self._number)

    def _end(self) -> None:
        self._found = self._read()
        self._remote.ask("end_counting", number=self._number)

    @property
    def texts(self) -> list[str]:
        """The statements, without BEGIN, COMMIT, savepoints and what sets a session up."""
        return self._read()[0]

    @property
    def count(self) -> int:
        """How many statements there were."""
        return len(self.texts)

    @property
    def round_trips(self) -> int:
        """How often a client waited for the server."""
        return self._read()[1]

    @property
    def connections(self) -> int:
        """How many connections were used."""
        return self._read()[2]


class Sandbox(Redirection):
    """One transaction for each database that applications use in it; all are rolled back at the end.

    `sandbox` makes one.
    """

    def __init__(self, dsn: str, databases: Mapping[str, str], patience: float) -> None:
        self._remote = Remote(dsn, databases, patience)
        self.address = f"127.0.0.1:{self._remote.port}"
        """Where it listens."""
        super().__init__(self._remote.port, self._remote.secret)

    @property
    def dsn(self) -> str:
        """The address of the sandbox, for clients that are not of pgmonkey."""
        return f"postgresql://sandbox:{self._remote.secret}@{self.address}/sandbox?sslmode=disable"

    @property
    def headers(self) -> dict[str, str]:
        """The header that tells an application in another process, started with `environ`, the sandbox of a request."""
        return {HEADER: f"{self._remote.port}.{self._remote.secret}.{SECRET}"}

    # -- what tests ask for -----------------------------------------------------------------------------------------

    @contextmanager
    def statements(self) -> Iterator[Statements]:
        """Count, in a block, the statements, round trips and connections of everything in the sandbox."""
        counted = Statements(self._remote)
        try:
            yield counted
        finally:
            counted._end()

    def fail_next_commit(self, sqlstate: str = "40001", message: str = "could not serialize access") -> None:
        """Have the next COMMIT fail and roll back; called twice, the next two."""
        self._remote.ask("fail_commit", sqlstate=sqlstate, words=message)

    def lose_connection(self) -> None:
        """Have the server end the connection that sends it something next, without a word."""
        self._remote.ask("lose_connection")

    @contextmanager
    def server_away(self) -> Iterator[None]:
        """Have no server in a block: connections end, and new ones are refused."""
        self._remote.ask("be_away", away=True)
        try:
            yield
        finally:
            self._remote.ask("be_away", away=False)

    def close(self) -> None:
        """Roll everything back; raise `SandboxError` where that is not certain."""
        self.leave()
        lost = self._remote.close()
        if "may have been stored" in lost:
            raise SandboxError(lost)


@contextmanager
def sandbox(dsn: str, *, databases: Mapping[str, str] | None = None, patience: float = 10.0) -> Iterator[Sandbox]:
    """Have all databases of applications, in a block, be one transaction in the database *dsn*, then rolled back.

    It is in force in the context of the block, whatever address an application's configuration names: requests to test
    clients, tasks and threads that copy the context.  While it is the only one of the process, it is in force
    everywhere.  *databases* are further ones: addresses by the names of the databases in the configurations.

    Transactions take turns; each waits *patience* seconds for the one before it, then it fails.
    """
    opened = Sandbox(dsn, databases or {}, patience)
    token = in_context.set(opened)
    note_open(opened)
    try:
        yield opened
    finally:
        with suppress(ValueError):  # ended in another context than it began in, as a fixture for tasks may be
            in_context.reset(token)
        note_closed(opened)
        opened.close()


@contextmanager
def statements() -> Iterator[Statements]:
    """Do as `Sandbox.statements`, for the sandbox that is in force."""
    found = current()
    if found is None:
        raise SandboxError("there is no sandbox to count in: use the fixture pgmonkey_sandbox")
    if not isinstance(found, Sandbox):
        raise SandboxError("only the test's own process can count statements in a sandbox")
    with found.statements() as counted:
        yield counted
