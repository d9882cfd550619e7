"""The files of a COPY: opened, and their first line read."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias


class Reading(Protocol):
    """A binary file to be read; its method may be one for coroutines."""

    def read(self, size: int, /) -> Any:
        """Return at most *size* bytes."""
        ...


class Writing(Protocol):
    """A binary file to be written; its method may be one for coroutines."""

    def write(self, data: bytes, /) -> Any:
        """Write *data*."""
        ...


CopyFile: TypeAlias = "str | os.PathLike[str] | Reading | Writing"
"""A path, or an object with the method ``read`` or ``write`` of a binary file."""

# The longest first line in bytes: what has none is no CSV.
_LONGEST = 1 << 20


class Written(Protocol):
    """How a file with a header is written."""

    @property
    def delimiter(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...


@contextmanager
def to_read(file: CopyFile) -> Iterator[Callable[[int], Any]]:
    """Open *file* for a block, if it is a path; give its method ``read``."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            yield opened.read
    else:
        yield _binary(file).read


@contextmanager
def to_write(file: CopyFile) -> Iterator[Callable[[bytes], Any]]:
    """Give the method ``write`` of *file*.  Where it is a path, the file is there, and complete, after the block."""
    if not isinstance(file, (str, os.PathLike)):
        yield _binary(file).write
        return
    part = f"{os.fspath(file)}.{os.getpid()}.part"
    try:
        with open(part, "wb") as opened:
            yield opened.write
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _binary(file: Any) -> Any:
    if isinstance(file, io.TextIOBase):
        raise TypeError("COPY reads and writes bytes: open the file in binary mode, 'rb' or 'wb'")
    return file


def start_of_text(data: bytes, form: str) -> bytes:
    """Return *data*, with which a file of a *form* of COPY begins, without a byte order mark."""
    return data if form == "binary" else data.removeprefix(codecs.BOM_UTF8)


def header_of(data: bytes, written: Written, encoding: str, *, complete: bool) -> Sequence[str] | None:
    """Return the names in the first line of *data*; None where the line goes on, unless *data* is *complete*."""
    end = data.find(b"\n")
    while end >= 0 and data.count(b'"', 0, end) % 2:  # a name may contain a line break
        end = data.find(b"\n", end + 1)
    if end < 0:
        if not complete and len(data) < _LONGEST:
            return None
        end = len(data)
    with suppress(LookupError):  # PostgreSQL has names of its own
        encoding = codecs.lookup(written.encoding or encoding).name
    line = data[:end].decode(encoding, "replace")
    return next(csv.reader([line.rstrip("\r")], delimiter=written.delimiter or ","), [])
