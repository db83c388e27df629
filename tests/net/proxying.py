# SPDX-License-Identifier: Apache-2.0
"""A proxy that does to bytes what networks do: cuts connections, flips bits, sends twice, in another order or by drops, and
lets nobody through for a while. In a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

KINDS = ["reset", "flip", "truncate", "drops", "partition", "duplicate", "reorder"]


class Proxy:
    """Between clients and a coordinator.

    Args:
        target: the coordinator's address.
        seed: of what goes wrong.
        mean: bytes that a direction of a connection lives on the average, until something goes wrong with it.
    """

    def __init__(self, target: str, seed: int, mean: float) -> None:
        host, _, port = target.rpartition(":")
        self.host, self.port = host, int(port)
        self.draw, self.mean = np.random.default_rng(seed), mean
        self.done: Counter[str] = Counter()
        self.calm = False
        self.crawling: set[int] = set()
        """Connections, by their number, that are left to one byte a second for good."""
        self.met = 0
        self.closed_until = 0.0

    async def serve(self, ready: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(self._met, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.put((address, asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self.closed_until and not self.calm:
            self.done["partition"] += 1
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        crawls, self.met = self.met in self.crawling, self.met + 1
        self.done["1 byte/s"] += crawls
        pump = self._crawl if crawls else self._pump
        ends = [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            for stream in (writer, back):
                stream.transport.abort()

    async def _crawl(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(1.0)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = float(self.draw.exponential(self.mean))
        with contextlib.suppress(OSError):
            while data := await reader.read(16_384):
                left -= len(data)
                if left < 0 and not self.calm:
                    kind = str(self.draw.choice(KINDS))
                    self.done[kind] += 1
                    left = float(self.draw.exponential(self.mean))
                    if kind == "flip":
                        damaged = bytearray(data)
                        damaged[int(self.draw.integers(len(data)))] ^= 1 << int(self.draw.integers(8))
                        data = bytes(damaged)
                    elif kind == "duplicate":
                        writer.write(data)
                    elif kind == "reorder":
                        data = data[len(data) // 2 :] + data[: len(data) // 2]
                    elif kind == "drops":
                        for i in range(min(len(data), 20)):
                            writer.write(data[i : i + 1])
                            await writer.drain()
                            await asyncio.sleep(0.01)
                        data = data[20:]
                    else:
                        if kind == "truncate":
                            writer.write(data[: len(data) // 2])
                            await writer.drain()
                        if kind == "partition":
                            self.closed_until = asyncio.get_running_loop().time() + 0.3
                        return
                writer.write(data)
                await writer.drain()


@contextmanager
def proxied(target: str, seed: int, mean: float) -> Iterator[tuple[str, Proxy]]:
    """A proxy in a thread: its address, and itself."""
    ready: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    proxy = Proxy(target, seed, mean)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(ready)), daemon=True)
    thread.start()
    address, loop, stop = ready.get(timeout=10)
    try:
        yield address, proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
