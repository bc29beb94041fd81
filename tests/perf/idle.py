"""Ten thousand WebSockets that say nothing: the memory each takes, and whether probes are answered meanwhile.

    python tests/perf/idle.py [--sockets 10000]

Needs as many descriptors on both sides (`ulimit -Hn`). Prints a line each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2

from tests.perf.footprint import resident
from tests.processes import serving

HANDSHAKE = (
    b"GET /v1/audio/transcriptions/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def measure(url: str, process: int, sockets: int) -> None:
    """Open them, ask for health."""
    host, port = url.removeprefix("http://").split(":")
    at_once = asyncio.Semaphore(200)

    async def one() -> tuple[asyncio.StreamWriter, bytes]:
        async with at_once:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(HANDSHAKE)
            return writer, await reader.readuntil(b"\r\n\r\n")

    before, began = resident(process), time.perf_counter()
    found = await asyncio.gather(*(one() for _ in range(sockets)))
    taken = sum(b" 101 " in head for _, head in found)
    each = (resident(process) - before) * 1e6 / 1024 / max(1, taken)
    print(
        f"{taken} of {sockets} opened in {time.perf_counter() - began:.1f} s, {each:.1f} KiB each"
    )
    waits = []
    async with httpx2.AsyncClient(timeout=10) as client:
        for _ in range(50):
            began = time.perf_counter()
            (await client.get(url + "/health")).raise_for_status()
            waits.append(1000 * (time.perf_counter() - began))
    print(f"/health meanwhile: {sorted(waits)[25]:.1f} ms P50, {max(waits):.1f} ms at most")
    for writer, _ in found:
        writer.close()


def main() -> None:
    """Start a server that takes them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, default=10_000)
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ["STT_MAX_CONNECTIONS"] = str(given.sockets * 8 // 7 + 100)
    with serving() as server:
        asyncio.run(measure(server.url, server.pid, given.sockets))


if __name__ == "__main__":
    main()
