"""The files of ``import`` and ``export``: compressed or not, in whatever encoding."""

from __future__ import annotations

import codecs
import gzip
import importlib
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from ..errors import PgmonkeyError

CHUNK = 1 << 17
"""How much is read and sent at a time, in bytes."""
# The same for what zstd decompresses, which may become a hundred times as long.
_COMPRESSED = 1 << 14
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

_zstd_errors: list[type[Exception]] = []


class Source:
    """A file that is imported, as UTF-8."""

    def __init__(self, raw: IO[bytes], name: str, encoding: str | None) -> None:
        self._raw = raw
        self._file = _decompressed(raw, name)
        self.name = "stdin" if name == "-" else name
        self.size = os.fstat(raw.fileno()).st_size if name != "-" else 0
        """In bytes; 0 where nobody knows."""
        self.bytes = self.lines = 0
        """How much was read, in bytes after decompression."""
        self._first = self._read()
        marked = next((each for mark, each in _MARKS if self._first.startswith(mark)), "utf-8")
        self._codec = codec_of(encoding or marked)
        if self._codec.name == "utf-8":
            self._first = self._first.removeprefix(codecs.BOM_UTF8)

    @property
    def position(self) -> int:
        """How much of `size` was read."""
        return self._raw.tell()

    def chunks(self) -> Iterator[bytes]:
        """Yield what is in it."""
        decode = None if self._codec.name == "utf-8" else self._codec.incrementaldecoder()
        data, self._first = self._first, b""
        try:
            while data:
                self.bytes += len(data)
                text = data if decode is None else decode.decode(data).encode()
                self.lines += text.count(b"\n")
                yield text
                data = self._read()
            if decode is not None:
                yield decode.decode(b"", final=True).encode()
        except UnicodeDecodeError as error:
            raise PgmonkeyError(
                f"{self.name}:{self.lines + 1}: the text is not in {self._codec.name} ({error.reason}); give --encoding"
            ) from None

    def _read(self) -> bytes:
        damaged: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, *_zstd_errors)
        try:
            data: bytes = self._file.read(CHUNK)
        except damaged as error:
            raise PgmonkeyError(f"{self.name}: the file is damaged, or cut off: {error}") from None
        return data


def codec_of(encoding: str) -> codecs.CodecInfo:
    """Return Python's codec for *encoding*; raise `PgmonkeyError` where there is none."""
    with suppress(LookupError):
        found = codecs.lookup(encoding)
        if found._is_text_encoding:
            return found
    raise PgmonkeyError(f"there is no encoding {encoding!r}: give one that Python knows, such as utf-8 or latin1")


@contextmanager
def opened(name: str, encoding: str | None) -> Iterator[Source]:
    """Open the file *name*, or stdin, for a block."""
    if name == "-":
        yield Source(sys.stdin.buffer, name, encoding)
    else:
        with open(name, "rb") as raw:
            yield Source(raw, name, encoding)


@contextmanager
def created(name: str) -> Iterator[IO[bytes]]:
    """Write the file *name*, or stdout, in a block.  The file is there, and complete, after the block."""
    if name == "-":
        yield sys.stdout.buffer
        return
    part = f"{name}.{os.getpid()}.part"
    try:
        with open(part, "wb") as raw:
            file = _compressed(raw, name)
            yield file
            if file is not raw:
                file.close()
        os.replace(part, name)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _decompressed(raw: IO[bytes], name: str) -> Any:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if not name.endswith((".zst", ".zstd")):
        return raw
    module = _zstd(name)
    return _Frames(raw, module) if module.__name__ == "zstandard" else module.open(raw, "rb")


def _compressed(raw: IO[bytes], name: str) -> Any:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6)
    return _zstd(name).open(raw, "wb") if name.endswith((".zst", ".zstd")) else raw


class _Frames:
    """Reads a file by the package zstandard, whose own reader ends after one frame, and where one is cut off.

    A file has several where it was compressed in parts.
    """

    def __init__(self, raw: IO[bytes], zstandard: Any) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._rest = b""

    def read(self, _size: int) -> bytes:
        """Return what comes next; empty at the end."""
        while data := self._rest or self._raw.read(_COMPRESSED):
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            found: bytes = self._frame.decompress(data)
            self._rest = b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
            if found:
                return found
        if self._frame is not None:
            raise EOFError("it ends in the middle of a frame")
        return b""


def _zstd(name: str) -> Any:
    """Return a module that has ``open()``: Python's own from 3.14 on, or that of a package."""
    for module in ("compression.zstd", "backports.zstd", "zstandard"):
        with suppress(ImportError):
            found = importlib.import_module(module)
            _zstd_errors.append(found.ZstdError)
            return found
    raise PgmonkeyError(f"{name}: zstd needs a package: pip install zstandard, or use .gz")


def delimiter_of(given: str | None, name: str, line: str = "") -> str:
    """Return the character between fields: the one that was given, that of a file of this *name*, or of its *line*."""
    if given is not None:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
        if len(delimiter.encode()) != 1:
            raise PgmonkeyError(f"--delimiter: {given!r} is not one character of one byte; for a tab, write tab")
        return delimiter
    if ".tsv" in os.path.basename(name).lower():
        return "\t"
    outside = "".join(line.split('"')[::2])
    return max(",;\t|", key=outside.count)
