"""Look up the addresses of hosts in a thread of its own, so that a slow name server keeps nobody past a deadline.

psycopg looks them up where nothing can end the wait: in the borrower's thread, or in asyncio's threads, for which the
end of the event loop waits.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Mapping
from concurrent.futures import Future
from ipaddress import ip_address
from socket import IPPROTO_TCP, SOCK_STREAM, getaddrinfo

import psycopg

Found = Future["dict[str, str] | psycopg.OperationalError"]
"""Has libpq's keywords with an address for each host, or the error of the last name; never raises."""

_under_way: dict[tuple[int, str, str], Found] = {}
"""The searches that have not ended, by process, hosts and ports: many borrowers wait for one."""


def look_up(connect: Mapping[str, object]) -> Found | None:
    """Look up the addresses for the arguments of a connection; None where there is no name, or libpq has to look."""
    hosts = str(connect.get("host") or os.environ.get("PGHOST", ""))
    ports = str(connect.get("port") or os.environ.get("PGPORT", ""))
    by_service = "host" not in connect and ("service" in connect or "PGSERVICE" in os.environ)
    if (
        by_service
        or connect.get("hostaddr")
        or os.environ.get("PGHOSTADDR")
        or not any(map(_is_name, hosts.split(",")))
    ):
        return None
    key = (os.getpid(), hosts, ports)  # a forked child has no thread that would go on with it
    found: Found = Future()
    found.set_running_or_notify_cancel()  # from now on, whoever stops waiting cannot cancel it for the others
    earlier = _under_way.setdefault(key, found)
    if earlier is found:
        try:
            _thread.start_new_thread(_search, (key, found))
        except RuntimeError:  # no thread can be started: psycopg looks it up
            _under_way.pop(key, None)
            return None
    return earlier


def _search(key: tuple[int, str, str], found: Found) -> None:
    result: dict[str, str] | psycopg.OperationalError = psycopg.OperationalError("the host name lookup failed")
    try:
        result = _resolve(key[1].split(","), key[2].split(","))
    finally:
        _under_way.pop(key, None)
        found.set_result(result)


def _resolve(hosts: list[str], ports: list[str]) -> dict[str, str] | psycopg.OperationalError:
    """Do as psycopg: one attempt for each address; a name that cannot be resolved is left out, if there are others."""
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        return {}  # psycopg raises
    attempts: list[tuple[str, str, str]] = []
    failure = psycopg.OperationalError("no host")
    for host, port in zip(hosts, ports, strict=True):
        if not _is_name(host):
            attempts.append((host, "" if not host or host[0] in "/@" else host, port))
            continue
        try:
            found = getaddrinfo(host, port or "5432", proto=IPPROTO_TCP, type=SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failure = psycopg.OperationalError(f"failed to resolve host {host!r}: {error}")
        else:
            attempts += [(host, str(item[4][0]), port) for item in found]
    if not attempts:
        return failure
    names, addresses, all_ports = (",".join(column) for column in zip(*attempts, strict=True))
    return {"host": names, "hostaddr": addresses, **({"port": all_ports} if any(ports) else {})}


def _is_name(host: str) -> bool:
    if not host or host[0] in "/@" or host[1:2] == ":":  # a socket's folder, on Windows with its drive
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False
