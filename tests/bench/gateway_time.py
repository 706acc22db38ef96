"""What the gateway adds to a stream, and what it loses, with many streams at once: through it and past it, side by side.

python tests/bench/gateway_time.py [STREAMS [SECONDS]]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import ssl
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from gateways import BLIND, KEYS, Gateway, Upstream, build_image

CHUNKS, GAP = 20, 1.0  # an answer of twenty seconds


@dataclass
class Tally:
    """Streams of one way: milliseconds until the first chunk, whole ones, chunks that did not come, errors."""

    first: list[float] = field(default_factory=list)
    whole: int = 0
    lost: int = 0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        errors = f"{len(self.errors)} errors {self.errors[:3] or ''}"
        deciles = statistics.quantiles(self.first, n=100)
        return f"{self.whole} whole streams, {self.lost} lost chunks, {errors}; first chunk {deciles[49]:.2f} ms, p99 {deciles[98]:.2f} ms"


def serve(tell: Connection) -> None:
    """The stub engine, a process of its own."""
    tell.send(Upstream().place)
    time.sleep(24 * 3600)


async def ask_on(port: int, context: ssl.SSLContext | None, until: float, tally: Tally) -> None:
    """One stream after the other on one connection, as a client's pool does it."""
    body = json.dumps({"chunks": CHUNKS, "gap": GAP})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['alice']}\r\nContent-Length: {len(body)}\r\n\r\n"
    await asyncio.sleep(random.uniform(0, CHUNKS * GAP))  # they began at different times
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        while time.monotonic() < until:
            began = time.perf_counter()
            writer.write((head + body).encode())
            if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                tally.errors.append("not 200")
                return
            found = []
            while size := int(await reader.readline(), 16):
                found.append((await reader.readexactly(size)).decode().strip())
                await reader.readexactly(2)
                if len(found) == 1:
                    tally.first.append((time.perf_counter() - began) * 1e3)
            await reader.readexactly(2)
            tally.whole += 1
            tally.lost += len({f"data: {number}" for number in range(CHUNKS)} - set(found))
            await asyncio.sleep(random.uniform(0, GAP))
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        tally.errors.append(repr(error))
    finally:
        writer.close()


async def load(gateway: int, direct: int, streams: int, seconds: float) -> tuple[Tally, Tally]:
    """So many streams through the gateway, and a tenth as many past it at the same time."""
    through, past = Tally(), Tally()
    until = time.monotonic() + seconds
    await asyncio.gather(
        *(ask_on(gateway, BLIND, until, through) for _ in range(streams)),
        *(ask_on(direct, None, until, past) for _ in range(streams // 10)),
    )
    return through, past


def measure(streams: int, seconds: float) -> tuple[Tally, Tally]:
    """Streams through the gateway and past it, on this machine alone."""
    build_image()
    ours, theirs = multiprocessing.Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    engine.start()
    place = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder), place, KEYS, GATEWAY_KEY_STREAMS=str(2 * streams))
        try:
            gateway.started()
            return asyncio.run(load(gateway.port, int(place.split(":")[1]), streams, seconds))
        finally:
            gateway.remove()
            engine.terminate()


if __name__ == "__main__":
    streams, seconds = (int(word) for word in (*sys.argv[1:], *("500", "300")[len(sys.argv) - 1 :]))
    through, past = measure(streams, seconds)
    print(f"through the gateway: {through}\npast it: {past}")
    print(f"added to the first chunk, at the median: {statistics.median(through.first) - statistics.median(past.first):.2f} ms")
