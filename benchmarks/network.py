# SPDX-License-Identifier: Apache-2.0
"""A coordinator's process under load, by clients that speak the real protocol: how fast a round is, what a poll waits, and what
memory it takes.

    python benchmarks/network.py                   all of it, a few minutes
    python benchmarks/network.py latency           10 clients, a model of 20 values: seconds per round
    python benchmarks/network.py polls             1,000 clients that wait for a round: from the first that is told to each
    python benchmarks/network.py updates           1,000 clients, updates of 100 kB: seconds per round
    python benchmarks/network.py large --mib 1024  3 clients, a large model: seconds, MiB/s, memory
    python benchmarks/network.py long              10,000 rounds of 10 clients: memory per round, rounds per second

The clients are asyncio tasks of one process, each with a connection, a certificate and a key of its own, unless ``--insecure``.
They make no model: they answer at once, with the same bytes in every round, so that what is measured is the coordinator, and
beside it, on the same cores, the clients' half of the protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedweave.config import Config
from fedweave.net import tls
from fedweave.net.certified import Seal
from fedweave.net.gate import NAME
from fedweave.net.identity import Identity, enrol
from fedweave.net.pki import Authority
from fedweave.wire import CHUNK, INLINE, Blob, Outlet, encode, write
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, path

REPORT = {"report": json.dumps({"examples": 10, "steps": 1, "loss": 0.5})}
AHEAD = 4


@dataclass
class Seen:
    """What the clients saw."""

    polls: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0


class Client:
    """One client: polls, fetches, commits."""

    def __init__(self, address: str, number: int, update: Outlet, seen: Seen, identity: Identity | None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if identity is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
            self.sign: Callable[[str, Any], None] = lambda method, request: None
        else:
            self.channel = grpc.aio.secure_channel(address, tls.channel_credentials(identity), options=options)
            self.sign = Seal(identity)
        self.calls = {
            name: self.channel.unary_unary(path(name), asked.SerializeToString, given.FromString)
            for name, (asked, given) in METHODS.items()
        }
        self.number, self.update, self.seen = number, update, seen
        self.metadata = ((NAME, f"c{number}"),)

    async def call(self, method: str, request: Any) -> Any:
        self.sign(method, request)
        return await self.calls[method](request, timeout=600, metadata=self.metadata, wait_for_ready=True)

    async def live(self) -> None:
        joined = await self.call("Join", pb.JoinRequest(number=self.number, examples=10))
        assert not joined.refused, joined.refused
        while True:
            polled = await self.call("Poll", pb.PollRequest(run=joined.run, wait_seconds=60))
            if polled.state == pb.PollReply.OVER:
                break
            if polled.state == pb.PollReply.TASK:
                await self.answer(joined.run, polled.task)
        await self.channel.close()

    async def answer(self, run: str, task: Any) -> None:
        self.seen.polls.append(time.monotonic())
        if not task.ask.inline:
            indices = range(len(task.ask.chunks))
            for start in range(0, len(indices), AHEAD):
                asked = [pb.FetchChunkRequest(run=run, task=task.id, index=i) for i in indices[start : start + AHEAD]]
                for reply in await asyncio.gather(*(self.call("FetchChunk", request) for request in asked)):
                    self.seen.bytes_down += len(reply.content)
        blob = self.update.blob
        inline = self.update.chunk(0) if blob.size <= INLINE else b""
        sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=inline)
        commit = pb.CommitRequest(run=run, task=task.id, round=task.round, update=sent)
        reply = await self.call("Commit", commit)
        while reply.verdict == pb.CommitReply.INCOMPLETE:
            for start in range(0, len(reply.missing), AHEAD):
                await asyncio.gather(*(self.push(run, task.id, i) for i in reply.missing[start : start + AHEAD]))
            reply = await self.call("Commit", commit)
        self.seen.bytes_up += blob.size
        assert reply.verdict == pb.CommitReply.ACCEPTED, reply.reason

    async def push(self, run: str, task: str, index: int) -> None:
        content = await asyncio.to_thread(self.update.chunk, index)
        await self.call("PushChunk", pb.PushChunkRequest(run=run, task=task, index=index, content=content))


class Bench:
    """A coordinator in a process of its own, in a temporary folder."""

    def __init__(self, size: int, clients: int, rounds: int, secure: bool = True, **more: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedweave-bench-"))
        self.size, self.clients, self.rounds, self.seen = size, clients, rounds, Seen()
        write(self.folder / "start.safetensors", {"w": np.zeros(size, np.float32)}, durable=False)
        update = {"delta": np.full(size, 1e-6, np.float32), "weight": 10}
        if size * 4 <= 1 << 20:
            content = encode(update, REPORT)
            self.update = Outlet(Blob.of(content), content)
        else:
            self.update = Outlet(write(self.folder / "update", update, REPORT, durable=False), self.folder / "update")
        plain = {"initial": "start.safetensors", "clients": clients, "cohort": clients, "rounds": rounds, "model": "bench"}
        Config.make({**plain, "evaluate_every": 0, "data": "bench", **more}).write(self.folder / "config.toml")
        self.identities: list[Identity | None] = [None] * clients
        if secure:
            authority = Authority.create(self.folder / "pki")
            for k in range(clients):
                token = authority.token(f"c{k + 1}")
                self.identities[k] = enrol(self.folder / "clients" / f"c{k + 1}", token, authority.enrol)
            authority.close()
        self.memory: list[tuple[int, int]] = []
        self.base, self.anonymous, self.mapped, self.peak = 0.0, 0.0, 0.0, 0.0

    def run(self, every: float = 1.0) -> dict[str, Any]:
        words = ["serve", str(self.folder / "config.toml"), "--out", str(self.folder / "run"), "--listen", "127.0.0.1:0"]
        how = ["--insecure"] if None in self.identities else ["--pki", str(self.folder / "pki")]
        command = [sys.executable, "-m", "fedweave.app.cli", *words, *how, "--events"]
        with (self.folder / "events").open("w") as out:
            process = subprocess.Popen(command, stdout=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            return asyncio.run(self._run(process, every))
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(self.folder)

    async def _run(self, process: Any, every: float) -> dict[str, Any]:
        address = ""
        while not address:
            await asyncio.sleep(0.05)
            first = (self.folder / "events").read_text().partition("\n")[0]
            address = json.loads(first)["address"] if first.endswith("}") else ""
        began = time.monotonic()
        watching = asyncio.create_task(self._watch(process.pid, every))
        everybody = [Client(address, k + 1, self.update, self.seen, who) for k, who in enumerate(self.identities)]
        await asyncio.gather(*(client.live() for client in everybody))
        seconds = time.monotonic() - began
        watching.cancel()
        await asyncio.to_thread(process.wait)
        events = [json.loads(line) for line in (self.folder / "events").read_text().splitlines()]
        rounds = [event["seconds"] for event in events if event["event"] == "Round" and event["number"] > 0]
        assert len(rounds) == self.rounds
        return {"seconds": seconds, "rounds": np.array(rounds), "memory": self.memory}

    async def _watch(self, pid: int, every: float) -> None:
        while True:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM", "Rss"))}
            done = (self.folder / "run" / "rounds.jsonl").read_text().count("\n") if every >= 5 else 0
            self.memory.append((done, found["VmRSS"]))
            self.peak, anonymous = found["VmHWM"] / 1024, found["RssAnon"] / 1024
            self.base = self.base or anonymous
            self.anonymous = max(self.anonymous, anonymous)
            self.mapped = max(self.mapped, found["RssFile"] / 1024)
            await asyncio.sleep(every)


def latency(options: Any) -> None:
    found = Bench(20, 10, 300, options.secure).run()
    ms = found["rounds"] * 1e3
    print(f"latency   10 clients, 20 values: median {np.median(ms):.1f} ms a round, 99% {np.percentile(ms, 99):.1f} ms")


def polls(options: Any) -> None:
    bench = Bench(20, options.clients, 10, options.secure)
    found = bench.run()
    at = np.sort(np.array(bench.seen.polls)).reshape(10, -1)
    waits = (at - at[:, :1]).reshape(-1) * 1e3
    print(
        f"polls     {options.clients} clients that wait for a round: median {np.median(waits):.0f} ms, 99% "
        f"{np.percentile(waits, 99):.0f} ms; {np.median(found['rounds']):.2f} s a round; coordinator {bench.peak:.0f} MiB"
    )


def updates(options: Any) -> None:
    bench = Bench(25_000, options.clients, options.rounds, options.secure)
    found = bench.run()
    print(
        f"updates   {options.clients} clients x 100 kB: median {np.median(found['rounds']):.2f} s a round; "
        f"coordinator {bench.peak:.0f} MiB at most"
    )


def loopback(mib: int, block: int = 1 << 20) -> float:
    """MiB/s of a plain TCP connection on this machine, from one thread to another."""
    content, room, left = bytes(block), bytearray(block), mib * block
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as out,
        server.accept()[0] as taken,
    ):
        sender = threading.Thread(target=lambda: [out.sendall(content) for _ in range(mib)])
        began = time.monotonic()
        sender.start()
        while left:
            left -= taken.recv_into(room, min(left, block))
        seconds = time.monotonic() - began
        sender.join()
    return mib / seconds


def large(options: Any) -> None:
    bench = Bench(options.mib << 18, 3, 2, options.secure)
    source, copy = bench.folder / "start.safetensors", bench.folder / "copy"
    began = time.monotonic()
    shutil.copyfile(source, copy)
    os.sync()
    copied = options.mib / (time.monotonic() - began)
    copy.unlink()
    found = bench.run(every=0.01)
    moved = (bench.seen.bytes_down + bench.seen.bytes_up) / (1 << 20)
    print(
        f"large     3 clients x {options.mib} MiB: {np.median(found['rounds']):.1f} s a round, "
        f"{moved / found['seconds']:.0f} MiB/s down and up together (cp with sync: {copied:.0f} MiB/s, "
        f"loopback TCP: {loopback(options.mib):.0f} MiB/s); "
        f"coordinator {bench.peak:.0f} MiB at most: {bench.anonymous:.0f} MiB of its own, {bench.base:.0f} of them before the "
        f"first client, and {bench.mapped:.0f} MiB of files"
    )


def long(options: Any) -> None:
    bench = Bench(20, 10, options.long, options.secure)
    found = bench.run(every=5.0)
    rounds, kib = np.array(bench.memory).T
    settled = rounds > min(500, options.long // 4)
    slope = np.polyfit(rounds[settled], kib[settled] * 1024.0, 1)[0] if settled.sum() > 2 else float("nan")
    ms, last = found["rounds"] * 1e3, len(found["rounds"]) // 10
    print(
        f"long      {options.long} rounds of 10 clients: {options.long / found['seconds']:.1f} rounds/s; "
        f"{slope:.0f} bytes a round; 99% of the last tenth {np.percentile(ms[-last:], 99):.1f} ms, "
        f"of the first {np.percentile(ms[:last], 99):.1f} ms"
    )


JOBS = {"latency": latency, "polls": polls, "updates": updates, "large": large, "long": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="of updates")
    parser.add_argument("--mib", type=int, default=1024, help="MiB of the large model")
    parser.add_argument("--long", type=int, default=10_000, help="rounds of long")
    parser.add_argument("--insecure", dest="secure", action="store_false", help="no certificates, no signatures")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    assert CHUNK <= 4 << 20
    for job in options.jobs or JOBS:
        JOBS[job](options)


if __name__ == "__main__":
    main()
