# SPDX-License-Identifier: Apache-2.0
"""The coordinator's process: a run's folder, a port that clients call, and a port that its operator looks at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fedweave import history
from fedweave.config import Config
from fedweave.errors import StoreError, UsageError
from fedweave.net import logs, ops
from fedweave.net.core import Drain
from fedweave.net.gate import Gate, Insecure
from fedweave.net.opening import begin
from fedweave.net.run import Limits, Run
from fedweave.net.server import Federation
from fedweave.net.tls import insecure
from fedweave.store import RunStore

OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20), ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 256), ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)  # fmt: skip
AT_ONCE = 20_000
"""Calls under way at a time, polls that wait among them."""
ENROLLING = 100
"""Enrolments under way at a time."""
HANG_UP, TELL = 0.5, 5.0
"""Seconds at most until calls that are under way are ended: when the process is to end, and when the run is over."""
SERVING = "serving.json"
"""In the run's folder: the process that serves it, and its addresses."""


@dataclass(frozen=True)
class Serving:
    """How a run is served.

    Args:
        listen: host and port for clients; port 0: any that is free.
        http: port on 127.0.0.1 for the operator; 0: any that is free.
        gate: says who calls.
        limits: how long is waited.
        evaluator: wait for somebody who measures models, and have it done.
        linger: seconds for which clients are told that the run is over, once it is.
        observer: told of what happens, in the core's thread.
        url: of the ledger's database, if it is not SQLite in the folder.
        ready: told the address once calls are answered.
        met: told of a client that joins: its name, how many have, and of how many.
        signals: whether SIGTERM and SIGINT end it, which only a process's main thread can be told.
    """

    listen: str = "127.0.0.1:7443"
    http: int = 0
    gate: Gate = field(default_factory=Insecure)
    limits: Limits = field(default_factory=Limits)
    evaluator: bool = False
    linger: float = 30.0
    observer: Callable[[history.Event], None] | None = None
    url: str | None = None
    ready: Callable[[str], None] | None = None
    met: Callable[[str, int, int], None] | None = None
    signals: bool = True


def opened(config: Config | None, out: Path, url: str | None) -> RunStore:
    """The folder's run; a new one from a configuration if there is none.

    Raises:
        UsageError: there is neither, or the configuration is another one than the run's.
        StoreError: the folder cannot be used.
    """
    try:
        return RunStore.open(out, url=url)
    except StoreError:
        store = RunStore(out, url=url)
        try:
            if store.about():
                raise
        finally:
            store.close()
    if config is None:
        raise UsageError(f"{out} holds no run to go on with; give a configuration: fedweave serve CONFIG.toml --out {out}.")
    if config.initial is None:
        raise UsageError("The configuration has no initial weights; make them: fedweave prepare CONFIG.toml --out DIR.")
    return begin(config, out, Path(config.initial), url)


async def serve(config: Config | None, out: Path, serving: Serving) -> str:
    """Serve a run until it is over, or was told to stop; how it ended.

    Raises:
        UsageError, StoreError: it cannot be served; why.
    """
    if isinstance(serving.gate, Insecure):
        insecure(serving.listen)
    store = await asyncio.to_thread(opened, config, out, serving.url)
    with logs.kept(out / "log.jsonl") as log:
        return await _served(store, serving, out, log)


async def _served(store: RunStore, serving: Serving, out: Path, log: Any) -> str:
    figures = ops.Figures()

    def observed(event: history.Event) -> None:
        figures.event(event)
        if isinstance(event, history.Round):
            log.info("round over", round=event.number, seconds=round(event.seconds, 4), metrics=event.plain()["metrics"],
                     refused=len(event.refused), dropped=len(event.dropped))  # fmt: skip
        if serving.observer is not None:
            serving.observer(event)

    try:
        run = Run(store, serving.limits, observed, log.warning, serving.evaluator)
        service = Federation(run, serving.gate, log.bind(run=run.id), figures.call, serving.met)
    except BaseException:
        store.close()
        raise
    await service.start()
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=AT_ONCE, interceptors=tuple(serving.gate.interceptors()))
    server.add_generic_rpc_handlers((service.handlers(),))
    credentials = serving.gate.credentials()
    try:
        if credentials is None:
            port = server.add_insecure_port(serving.listen)
        else:
            port = server.add_secure_port(serving.listen, credentials)
    except RuntimeError as error:
        service.core.close()
        raise UsageError(f"{serving.listen} cannot be listened on: {error}. Is another coordinator there?") from None
    enrolling, beside = await _enrolling(service, serving.gate.enrolment())
    await server.start()
    web = await ops.listen(serving.http, service.status, lambda: service.wrong, figures)
    host = serving.listen.rpartition(":")[0]
    address = f"{host}:{port}"
    facts = {"pid": os.getpid(), "address": address, "http": web.sockets[0].getsockname()[1], "enrol": beside}
    store.write(SERVING, json.dumps(facts).encode())
    log.info("serving", address=address, http=facts["http"], round=service.status()["round"])
    if serving.ready is not None:
        serving.ready(address)
    watch = asyncio.create_task(service.watch())
    stopped = _signals(service, log) if serving.signals else asyncio.Event()
    try:
        await _until(service, watch, stopped, serving.linger)
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watch
        web.close()
        # Calls are answered at once when the run is over, and who does not hear its answer would ask for ever.
        await server.stop(grace=TELL if service.ended else HANG_UP)
        if enrolling is not None:
            await enrolling.stop(grace=HANG_UP)
        await asyncio.to_thread(service.core.close)
        log.info("stopped", why=service.ended)
        (out / SERVING).unlink(missing_ok=True)
    if service.core.failed is not None:
        raise service.core.failed
    return service.ended


async def _enrolling(service: Federation, wanted: tuple[str, Any] | None) -> tuple[Any, str | None]:
    """The server for those who have no certificate yet, which knows one call, and its address."""
    if wanted is None:
        return None, None
    listen, credentials = wanted
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=ENROLLING)
    server.add_generic_rpc_handlers((service.handlers(["Enrol"]),))
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        service.core.close()
        raise UsageError(f"{listen} cannot be listened on: {error}. Is another coordinator there?") from None
    await server.start()
    return server, f"{listen.rpartition(':')[0]}:{port}"


async def _until(service: Federation, watch: Any, stopped: asyncio.Event, linger: float) -> None:
    """Wait until the run is over, and everybody knows; or until somebody wants an end at once."""
    over = asyncio.create_task(service.over.wait())
    halt = asyncio.create_task(stopped.wait())
    await asyncio.wait({over, halt, watch}, return_when=asyncio.FIRST_COMPLETED)
    halt.cancel()
    if watch.done() and not over.done():
        over.cancel()
        watch.result()
    if stopped.is_set() or service.core.failed is not None:
        over.cancel()
        return
    members = {member.number for member in service.run.members}
    end = asyncio.get_running_loop().time() + linger
    while not members <= service.told and asyncio.get_running_loop().time() < end and not stopped.is_set():
        await asyncio.sleep(0.02)


def _signals(service: Federation, log: Any) -> asyncio.Event:
    """The first SIGTERM or SIGINT ends the run after the round in progress; the second ends the process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        if service.draining or not service.run.begun:
            stopped.set()
            return
        service.draining = True
        log.info("draining", why="told to stop: the round in progress is the last")
        service.core.submit(Drain())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stopped
