# SPDX-License-Identifier: Apache-2.0
"""What an operator looks at: health, status and Prometheus' figures, over HTTP on this machine alone, for reading only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from fedweave.history import ClientDone, Event, Round

LONGEST = 8192
"""Bytes of a request at most."""


class Figures:
    """Counted while a run is served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        add: Any = {"registry": self.registry}
        self.calls = Counter("fedweave_calls_total", "Calls answered, by status code.", ["method", "code"], **add)
        self.seconds = Histogram("fedweave_call_seconds", "Seconds of a call; a poll waits.", ["method"], **add)
        self.rounds = Counter("fedweave_rounds_total", "Rounds finished by this process.", **add)
        self.round = Gauge("fedweave_round", "The last finished round.", **add)
        self.length = Histogram(
            "fedweave_round_seconds",
            "Seconds of a round.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
            **add,
        )
        self.updates = Counter("fedweave_updates_total", "Updates accepted.", **add)
        self.lost = Counter("fedweave_updates_lost_total", "Clients whose work was not counted.", ["how"], **add)
        self.metric = Gauge("fedweave_metric", "The model's last measured metrics.", ["name"], **add)

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call is over."""
        self.calls.labels(method, code).inc()
        self.seconds.labels(method).observe(seconds)

    def event(self, event: Event) -> None:
        """Something happened in the run."""
        if isinstance(event, ClientDone):
            self.updates.inc()
        if isinstance(event, Round):
            self.round.set(event.number)
            if event.number:
                self.rounds.inc()
                self.length.observe(event.seconds)
            self.lost.labels("refused").inc(len(event.refused))
            self.lost.labels("dropped").inc(len(event.dropped))
            for name, value in event.metrics.items():
                self.metric.labels(name).set(value)


async def listen(port: int, status: Callable[[], dict[str, Any]], healthy: Callable[[], str], figures: Figures) -> Any:
    """The HTTP server, listening on 127.0.0.1: ``/health``, ``/status`` and ``/metrics``.

    Args:
        port: 0: any that is free.
        status: where the run stands.
        healthy: what is wrong; empty if nothing is.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                verb, _, rest = head.decode("latin-1").partition(" ")
                place = rest.partition(" ")[0]
                code, kind, body = _page(verb, place, status, healthy, figures)
                top = f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(top.encode() + body)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, limit=LONGEST)


def _page(
    verb: str, place: str, status: Callable[[], dict[str, Any]], healthy: Callable[[], str], figures: Figures
) -> tuple[str, str, bytes]:
    if verb != "GET":
        return "405 Method Not Allowed", "text/plain", b"only GET\n"
    if place == "/health":
        wrong = healthy()
        return ("503 Service Unavailable" if wrong else "200 OK"), "text/plain", (wrong or "ok").encode() + b"\n"
    if place == "/status":
        return "200 OK", "application/json", json.dumps(status()).encode() + b"\n"
    if place == "/metrics":
        return "200 OK", "text/plain; version=0.0.4", generate_latest(figures.registry)
    return "404 Not Found", "text/plain", b"/health, /status, /metrics\n"
