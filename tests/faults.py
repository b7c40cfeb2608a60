"""A proxy on the way to a server, which does to connections what networks and other proxies do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 16
_FULL = b"<Error><Code>QuotaExceeded</Code><Message>There is no room.</Message></Error>"


def never(_connection: int) -> None:
    return None


@dataclass
class Faults:
    """What is done to the connections from now on; they are counted from 0."""

    #: After how many bytes of answers, or of requests, a connection is cut.
    cut_answers: Callable[[int], int | None] = never
    cut_requests: Callable[[int], int | None] = never
    slow_s: float = 0.0  #: before each 64 KiB
    refuses: bool = False  #: every connection
    is_full: bool = False  #: every PUT and POST is answered by 507, until something is deleted
    ignores_ranges: bool = False  #: requests arrive without their Range
    answers_200: bool = False  #: to ranges, too
    #: Positions in a connection's answers, or requests, whose bytes are changed; each once.
    corrupt_answers: set[int] = field(default_factory=set)
    corrupt_requests: set[int] = field(default_factory=set)


class Proxy:
    """Forwards connections to an address."""

    def __init__(self, address: str) -> None:
        found = urlsplit(address)
        self._to = (found.hostname, found.port)
        self.faults = Faults()
        self.connections = 0
        self.cuts = 0
        self.forwarded_bytes = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A thread in accept() isn't woken by close().
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop()

    def drop(self) -> None:
        """Cut all connections."""
        for one in list(self._open):
            _cut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            if self.faults.refuses:
                _cut(client)
                continue
            try:
                server = socket.create_connection(self._to)
            except OSError:
                _cut(client)
                continue
            self._open |= {client, server}
            for work in (self._requests, self._answers):
                threading.Thread(target=work, args=(number, client, server), daemon=True).start()

    def _requests(self, number: int, client: socket.socket, server: socket.socket) -> None:
        def changed(data: bytes) -> bytes:
            if data.startswith(b"DELETE ") or b"?delete " in data[:200]:
                self.faults.is_full = False
            if self.faults.is_full and data.startswith((b"PUT ", b"POST ")):
                head = f"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: {len(_FULL)}\r\n"
                client.sendall(head.encode() + b"Connection: close\r\n\r\n" + _FULL)
                with suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(_CHUNK_BYTES):
                        pass
                raise ConnectionError
            if self.faults.ignores_ranges and data.startswith(b"GET "):
                head, _, rest = data.partition(b"\r\n\r\n")
                kept = [one for one in head.split(b"\r\n") if not one.lower().startswith(b"range:")]
                data = b"\r\n".join(kept) + b"\r\n\r\n" + rest
            return data

        limit, wrong = self.faults.cut_requests(number), self.faults.corrupt_requests
        self._pump(client, server, limit, wrong, changed)

    def _answers(self, number: int, client: socket.socket, server: socket.socket) -> None:
        limit, wrong = self.faults.cut_answers(number), self.faults.corrupt_answers

        def changed(data: bytes) -> bytes:
            if self.faults.answers_200 and data.startswith(b"HTTP/1.1 206 "):
                _, _, rest = data.partition(b"\r\n")
                return b"HTTP/1.1 200 OK\r\n" + rest
            return data

        self._pump(server, client, limit, wrong, changed)

    def _pump(
        self,
        source: socket.socket,
        to: socket.socket,
        limit: int | None,
        wrong: set[int],
        changed: Callable[[bytes], bytes],
    ) -> None:
        done = 0
        try:
            while data := source.recv(_CHUNK_BYTES):
                if self.faults.slow_s:
                    time.sleep(self.faults.slow_s)
                if self.faults.refuses:
                    break
                data = bytearray(changed(data))
                self.forwarded_bytes += len(data)
                for at in [one for one in wrong if done <= one < done + len(data)]:
                    wrong.discard(at)
                    data[at - done] ^= 1
                if limit is not None and done + len(data) >= limit:
                    to.sendall(data[: limit - done])
                    self.cuts += 1
                    break
                to.sendall(data)
                done += len(data)
        except OSError:
            pass
        finally:
            self._open -= {source, to}
            _cut(source)
            _cut(to)


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def before(address: str) -> Iterator[Proxy]:
    """A proxy before this server."""
    proxy = Proxy(address)
    try:
        yield proxy
    finally:
        proxy.close()
