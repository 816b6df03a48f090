"""A process of its own with many readers on one stream, on raw sockets: `python reader_crowd.py PORT STREAM READERS`.

Prints `ready` when each has had its first message, and a JSON report when all connections have ended: the
delivery latency (from the message's own time of sending) in ms, and how each connection ended.
"""

import asyncio
import json
import re
import resource
import sys
import time

import uvloop

SENT = re.compile(rb'"sent":(\d+)')
INTERRUPTED = b"event: interrupted\n"


class Reader(asyncio.Protocol):
    def __init__(self, crowd: "Crowd") -> None:
        self._crowd = crowd
        self._rest = b""
        self._told = False
        self._greeted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(self._crowd.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        self._told = self._told or INTERRUPTED in data
        end = 0
        for found in SENT.finditer(data, 0, data.rfind(b"\n") + 1):
            end = found.end()
            self._crowd.latencies.append((now - int(found[1])) / 1e6)
        if end and not self._greeted:
            self._greeted = True
            self._crowd.greeted()
        self._rest = data[max(end, len(data) - 200) :]

    def connection_lost(self, error: Exception | None) -> None:
        self._crowd.left("told" if self._told else "cut" if error else "ended")


class Crowd:
    def __init__(self, port: int, stream: str, readers: int) -> None:
        self.request = (
            f"GET /v1/stream/{stream}?format=sse&offset=now HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()
        )
        self.latencies: list[float] = []
        self._port = port
        self._waiting, self._open = readers, readers
        self._ends: dict[str, int] = {}
        self._over = asyncio.Event()

    def greeted(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self.latencies.clear()  # while they connected, the server had other work
            print("ready", flush=True)

    def left(self, how: str) -> None:
        self._ends[how] = self._ends.get(how, 0) + 1
        self._open -= 1
        if not self._open:
            self._over.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._open):
            await loop.create_connection(lambda: Reader(self), "127.0.0.1", self._port)
        await self._over.wait()
        latencies = sorted(self.latencies)
        report = {
            "deliveries": len(latencies),
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[len(latencies) * 99 // 100],
            "ends": self._ends,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(Crowd(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])).run())
