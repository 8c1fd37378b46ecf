"""A server of a folder that is slow on purpose: so long until it answers, so many bytes a second on
each connection. For benchmarks on one machine.

    python benchmarks/slow_server.py folder=DIR [latency=0.05] [bandwidth=40]

It prints its port, and serves until its standard input closes. HTTP/1.1 with ranges; a path's first
part is ignored, so that several clients may have an address each.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

from common import read_words, refuse_others, run_command

SETTINGS = {"folder": "", "latency": "0.05", "bandwidth": "40"}
PIECE = 1 << 20  # bytes that are sent at a time


class SlowServer:
    """
    Args:
        latency: seconds until the first byte of an answer.
        bandwidth: bytes a second of one connection.
    """

    def __init__(self, folder: Path, latency: float, bandwidth: float):
        self.folder = folder
        self.latency = latency
        self.bandwidth = bandwidth

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The requests of one connection."""
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        await asyncio.sleep(self.latency)
        file = self.folder / Path(path.decode()).name
        if not file.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        size = file.stat().st_size
        wanted = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
        first, stop = 0, size
        status = b"200 OK"
        if wanted:
            first, stop = int(wanted[1]), min(int(wanted[2]) + 1, size)
            status = b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d" % (
                first,
                stop - 1,
                size,
            )
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, stop - first))
        if method != b"HEAD":
            await self._send(writer, file, first, stop)
        return True

    async def _send(self, writer: asyncio.StreamWriter, file: Path, first: int, stop: int) -> None:
        loop = asyncio.get_running_loop()
        begun, position = time.monotonic(), first
        await writer.drain()
        with file.open("rb") as opened:
            while position < stop:
                count = min(PIECE, stop - position)
                await loop.sendfile(writer.transport, opened, position, count, fallback=True)
                position += count
                due = begun + (position - first) / self.bandwidth
                await asyncio.sleep(max(due - time.monotonic(), 0))


async def serve(folder: Path, latency: float, bandwidth: float) -> None:
    slow = SlowServer(folder, latency, bandwidth)
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    os._exit(0)  # connections that clients keep open are of no interest any more


def main() -> int:
    own, others = read_words(SETTINGS)
    refuse_others(others, SETTINGS)
    bandwidth = float(own["bandwidth"]) * 1e6
    asyncio.run(serve(Path(own["folder"]), float(own["latency"]), bandwidth))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
