# SPDX-License-Identifier: Apache-2.0
"""Deployments for tests: a coordinator in a thread of this process and clients in others, over real sockets; or processes that
can be killed."""

from __future__ import annotations

import asyncio
import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedweave.config import Config
from fedweave.net import client, logs
from fedweave.net.client import OPTIONS, Line, Session
from fedweave.net.own import Trained, Turn, Worker
from fedweave.net.serving import Serving, serve
from fedweave.randomness import generator
from fedweave.wire import encode

client.LONGEST = 1.0
"""Tests do not wait as long as clients do."""


class Pull:
    """A client without a framework: pulls the weights halfway to a point of its own, by a rule that anyone can repeat."""

    def __init__(self, number: int, size: int, examples: int = 10) -> None:
        self.number, self.size, self.examples = number, size, examples
        self.point = generator(1, "point", 0, number).standard_normal(size).astype(np.float32)
        self.trained: list[int] = []

    def train(self, weights: dict[str, Any], turn: Turn) -> Trained:
        self.trained.append(turn.round)
        w = weights["w"]
        return Trained({"w": w + np.float32(0.5) * (self.point - w)}, 1, float(np.mean((w - self.point) ** 2)))


def expected(clients: Sequence[Pull], rounds: int, participants: Callable[[int], Sequence[int]] | None = None) -> Any:
    """Where FedAvg with these clients ends, by a slow loop."""
    size = clients[0].size
    x = np.zeros(size, np.float32)
    for round in range(1, rounds + 1):
        chosen = list(participants(round)) if participants else range(len(clients))
        total = sum(clients[k].examples for k in chosen)
        mean = np.zeros(size, np.float64)
        for k in chosen:
            delta = (x + np.float32(0.5) * (clients[k].point - x)) - x
            mean += clients[k].examples * delta.astype(np.float64)
        x = x + (mean / total).astype(np.float32)
    return x


def configured(folder: Path, size: int, clients: int, rounds: int, **more: Any) -> Config:
    """A configuration, with initial weights 0 beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "start.safetensors").write_bytes(encode({"w": np.zeros(size, np.float32)}))
    plain = {"initial": str(folder / "start.safetensors"), "clients": clients, "cohort": 1.0, "rounds": rounds, "model": "pull"}
    return Config.make({**plain, "evaluate_every": 0, "checkpoint_every": 0.0, "data": "points", **more})


@contextmanager
def served(config: Config | None, out: Path, serving: Serving | None = None) -> Iterator[tuple[str, Callable[[], str]]]:
    """A coordinator in a thread: its address, and what waits for its end."""
    ready: queue.Queue[Any] = queue.Queue()
    ended: list[Any] = []
    how = replace(serving or Serving(), listen="127.0.0.1:0", signals=False, ready=ready.put)

    def work() -> None:
        try:
            ended.append(asyncio.run(serve(config, out, how)))
        except BaseException as error:
            ended.append(error)
            ready.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    address = ready.get(timeout=30)
    if isinstance(address, BaseException):
        raise address

    def wait() -> str:
        thread.join(60)
        assert ended, "the coordinator has not ended"
        if isinstance(ended[0], BaseException):
            raise ended[0]
        return str(ended[0])

    yield address, wait


def line(address: str, name: str, ended: threading.Event | None = None) -> Line:
    """A client's line to the coordinator."""
    channel = grpc.insecure_channel(address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
    log = logs.logger(io.StringIO())
    return Line(channel, name, lambda method, request: None, log, ended or threading.Event())


@contextmanager
def joined(address: str, workers: Sequence[Worker], folder: Path, first: int = 1) -> Iterator[list[Any]]:
    """Clients in threads, numbered from ``first`` (0: the evaluator); how each ended."""
    ended: list[Any] = [None] * len(workers)
    stop = threading.Event()

    def work(i: int, worker: Worker) -> None:
        number = first + i
        session = Session(line(address, f"c{number}", stop), worker, folder / f"c{number}", number, number == 0)
        try:
            ended[i] = session.work()
        except BaseException as error:
            ended[i] = error
        finally:
            session.line.channel.close()

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(workers)]
    for thread in threads:
        thread.start()
    try:
        yield ended
        for thread in threads:
            thread.join(60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
