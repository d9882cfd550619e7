"""A TCP proxy on loopback that misbehaves on command, and counts round trips."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from types import TracebackType

# BackendKeyData, behind which comes ReadyForQuery.
_KEY = re.compile(b"(?<=K\0\0\0\x0c)....(?=....Z\0\0\0\x05)", re.DOTALL)


class FaultProxy:
    """Stands between clients and a server: ``with FaultProxy(host, port) as proxy``, then connect to ``proxy.port``.

    The attributes may be changed at any time and hold for what comes next.
    """

    def __init__(self, host: str, port: int) -> None:
        self.latency = 0.0
        """Seconds added in each direction."""
        self.silent = False
        """Bytes vanish, connections stay."""
        self.refuses = False
        """New connections are reset at once."""
        self.cut_after = 0
        """Connections are reset after that many bytes from the server; 0 for never."""
        self.garbage = b""
        """What comes in the place of all that the server says."""
        self.key: bytes | None = None
        """Four bytes that come in the place of each server's process number."""
        self.round_trips = 0
        """How often a client spoke after the server had."""
        self.port = 0
        self._target = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._finish)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def reset_all(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    def _finish(self) -> None:
        self._reset_all()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve_forever())
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve_forever(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            _reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        self._open |= {writer, to_server}
        spoke = {"server": True}
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, to_server, writer, spoke, from_server=False),
                self._pump(from_server, writer, writer, spoke, from_server=True),
            )
        self._open -= {writer, to_server}
        writer.close()
        to_server.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        spoke: dict[str, bool],
        *,
        from_server: bool,
    ) -> None:
        # A delay line, not a pause between reads: what comes back to back leaves back to back.
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if self.silent:
                        continue
                    self.round_trips += spoke["server"] and not from_server
                    spoke["server"] = from_server
                    line.put_nowait((self._loop.time() + self.latency, data))
            line.put_nowait((0.0, b""))

        async def write() -> None:
            seen = 0
            with contextlib.suppress(OSError):
                while True:
                    due, data = await line.get()
                    if not data:
                        break
                    if due > self._loop.time():
                        await asyncio.sleep(due - self._loop.time())
                    seen += len(data)
                    if from_server and 0 < self.cut_after < seen:
                        _reset(client)
                        break
                    if from_server and self.key is not None:
                        data = _KEY.sub(self.key, data)
                    writer.write(self.garbage if from_server and self.garbage else data)
                    await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()

        await asyncio.gather(read(), write())


def _reset(writer: asyncio.StreamWriter) -> None:
    connected = writer.get_extra_info("socket")
    if connected is not None:
        with contextlib.suppress(OSError):  # it is closed already
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
