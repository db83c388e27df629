# SPDX-License-Identifier: Apache-2.0
"""A client's end of a deployment: its data by the name of a function, and the process around it."""

from __future__ import annotations

import ast
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedweave import names
from fedweave.errors import UsageError
from fedweave.net import logs
from fedweave.net.client import OPTIONS, Line, Session, hours
from fedweave.net.own import Client, OwnWorker, Worker
from fedweave.net.tls import insecure


@dataclass(frozen=True)
class Joining:
    """How a client takes part.

    Args:
        server: host and port.
        data: ``"package.module:load"``, or ``"package.module:load(hospital='va')"``.
        workdir: for what the client must remember.
        name: what it is called, on an insecure channel.
        number: of the client, from 1; None: any that is free.
        evaluator: it measures models in place of training them.
        allow: the model or loss of a package that the run may name, ``"package.module:factory"``; several by commas.
        threads: at most.
        memory: GiB at most; None: no limit.
        hours: when it works, ``"22-6"``; None: always.
        channel: makes the channel; None: an insecure one, to this machine.
        sign: puts a signature into a request.
        refused: is told of calls that failed.
        quiet: say nothing on stderr.
    """

    server: str
    data: str
    workdir: Path
    name: str
    number: int | None = None
    evaluator: bool = False
    allow: str | None = None
    threads: int | None = None
    memory: float | None = None
    hours: str | None = None
    channel: Callable[[str], Any] | None = None
    sign: Callable[[str, Any], None] = lambda method, request: None
    refused: Callable[[Any], None] = lambda error: None
    quiet: bool = False


def loaded(text: str) -> Any:
    """What ``package.module:function``, called without arguments or with the plain ones in the text, returns.

    Raises:
        UsageError: there is no such function, or the text is no such call.
    """
    head, bracket, tail = text.partition("(")
    problem = UsageError(f"--data is {text!r}; write it like package.module:load or package.module:load(hospital='va').")
    if ":" not in head:
        raise problem
    found = names.imported("data loader", head.strip())
    arguments: dict[str, Any] = {}
    if bracket:
        try:
            call = ast.parse(f"f({tail}", mode="eval").body
            assert isinstance(call, ast.Call)
            assert not call.args
            arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (SyntaxError, ValueError, AssertionError):
            raise problem from None
    return found(**arguments)


def worker_of(given: Any, joining: Joining) -> Worker:
    """Who does a client's tasks, by what its data loader returned: a ``fedweave.Client``, or arrays (x, y) to train the run's
    own model on; for an evaluator, arrays or a split.

    Raises:
        UsageError: it is something else, or torch is missing.
    """
    from fedweave.data import Split, from_clients

    if isinstance(given, Client) and not joining.evaluator:
        return OwnWorker(given)
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if not pair and not (joining.evaluator and isinstance(given, Split)):
        raise UsageError(
            f"The data loader {joining.data} returned {type(given).__name__}; it must return arrays (x, y), or an object with "
            "examples and train(), a fedweave.Client."
        )
    try:
        from fedweave.net.training import Evaluator, TorchWorker
    except ImportError:
        raise UsageError(
            "Training the run's own model needs torch: pip install 'fedweave[torch]'. A client that trains its own way, a "
            "fedweave.Client, does not."
        ) from None
    if joining.evaluator:
        return Evaluator(given if isinstance(given, Split) else from_clients([given], test=given), joining.allow)
    split = from_clients([given])
    return TorchWorker(split.x_train, split.y_train, joining.allow, joining.threads)


def join(joining: Joining) -> str:
    """Take part in a run until it is over; how it ended.

    Raises:
        UsageError, MismatchError, StoreError: the client cannot take part; why.
        KeyboardInterrupt: it was told to end.
    """
    if joining.channel is None:
        insecure(joining.server)
    if joining.memory is not None:
        most = int(joining.memory * (1 << 30))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    worker = worker_of(loaded(joining.data), joining)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _told(ended))
    joining.workdir.mkdir(parents=True, exist_ok=True)
    open_now = (lambda: True) if joining.hours is None else hours(joining.hours)
    channel = joining.channel(joining.server) if joining.channel else grpc.insecure_channel(joining.server, options=OPTIONS)
    with channel, _log(joining) as log:
        line = Line(channel, joining.name, joining.sign, log, ended, joining.refused)
        return Session(line, worker, joining.workdir, joining.number, joining.evaluator, open_now).work()


def _told(ended: threading.Event) -> None:
    """The first signal ends the client once what it trains is on disk, the second at once."""
    if ended.is_set():
        raise KeyboardInterrupt
    ended.set()


def _log(joining: Joining) -> AbstractContextManager[Any]:
    if joining.quiet:
        return logs.kept(joining.workdir / "log.jsonl", name=joining.name)
    return nullcontext(logs.logger(sys.stderr, name=joining.name))
