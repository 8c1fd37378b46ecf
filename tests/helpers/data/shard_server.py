"""A server of shards on this machine that fails in the ways servers do, when told to."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from data_shards.stream import Stream

SIZES = (4, 3, 5, 2, 6)
TAR, INDEX = "train-000002.tar", "train-000002.idx"


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges. ``faults[name]`` are what befalls the next requests for that
    file."""

    daemon_threads = True

    def __init__(self, folder: Path, handler: type[Handler] | None = None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.always: dict[str, str] = {}
        self.asked: list[tuple[str, int]] = []  # file and first byte of each GET
        self.upstream = ("", 0)  # host and port, of a relay
        self.let_go, self.failing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    def starts(self, name: str) -> list[int]:
        return [start for asked, start in self.asked if asked == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *said: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        name = urlsplit(self.path).path.partition("/data/")[2]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if send:
            self.server.asked.append((name, int(found[1]) if found else 0))
        fault = self.server.always.get(name) or (
            self.server.faults[name].popleft() if self.server.faults[name] else ""
        )
        if fault == "dead":  # from here on
            fault = self.server.always[name] = "500"
        if name in self.server.always:
            self.server.failing.set()
        if fault in ("500", "503", "403"):
            return self._plain(int(fault))
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        status, headers, body = self._found(name, found if self.server.ranges else None)
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for header, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        if not send:
            return None
        if fault == "truncated":
            body = body[: len(body) // 2]
            self.close_connection = True
        if fault == "slow":
            self.wfile.write(body[:10])
            self.server.let_go.wait(20)
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def _found(self, name: str, wanted: re.Match[str] | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer when nothing befalls it."""
        path = self.server.folder / name
        body = path.read_bytes() if path.is_file() else b""
        if not body:
            return 404, {}, b""
        if not wanted:
            return 200, {}, body
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(body))
        if start >= stop:
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}, body[start:stop]

    def _plain(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Relay(Handler):
    """Asks the server at ``upstream`` of its own, and lets the faults befall what that answers."""

    def _found(self, name: str, wanted: re.Match[str] | None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=20)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        own = ("connection", "date", "server", "transfer-encoding")
        return (
            answer.status,
            {name: value for name, value in answer.getheaders() if name.lower() not in own},
            body,
        )


@contextmanager
def serving(made: Server) -> Iterator[Server]:
    with made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.let_go.set()
        made.shutdown()
        thread.join()


def read_all(url: str, cache: Path, **options) -> list[list[int]]:
    stream = Stream(url, "train", **({"global_batch": 4, "cache": cache, "window": 2} | options))
    try:
        parts = [part for (part,) in stream.epoch(0)]
    finally:
        stream.close()
    assert all(part.arrays["label"].tolist() == part.index.tolist() for part in parts)
    return [part.index.tolist() for part in parts]


def everything(server: Server) -> list[list[int]]:
    return read_all(str(server.folder), Path("unused"))
