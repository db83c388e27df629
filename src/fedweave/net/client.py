# SPDX-License-Identifier: Apache-2.0
"""A client's process: it asks for work, does it, and hands it in; and goes on with what it was doing whatever ends it."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedweave.errors import DataError, FedweaveError, StoreError, UsageError
from fedweave.net import failpoints
from fedweave.net.gate import NAME
from fedweave.net.journal import Journal, Made
from fedweave.net.own import Worker, local_of
from fedweave.net.tasks import Kind
from fedweave.wire import Blob, Content, Intake, Outlet, read
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, path

CALL, TRANSFER = 30.0, 120.0
"""Seconds until a call, or that of a chunk, is given up and made again."""
WAIT = 30.0
"""Seconds that a poll waits at the coordinator."""
BEAT = 10.0
"""Seconds between two signs of life while a client trains, at most."""
FIRST, LONGEST = 0.1, 15.0
"""Seconds of the shortest and the longest pause before a call is made again."""
LISTEN = 0.5
"""Seconds between two looks at whether the client is to end, while a call waits."""
AHEAD = 4
"""Chunks under way at a time."""
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000), ("grpc.enable_http_proxy", 0),
)  # fmt: skip
KINDS: dict[int, Kind] = {pb.TRAIN: "train", pb.SURVEY: "survey", pb.EVALUATE: "evaluate"}
PASSING = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED,
)  # fmt: skip
"""What may be otherwise the next time."""


class Gone(Exception):
    """A task is over, or the coordinator will have nothing of it."""


@dataclass(frozen=True)
class Line:
    """The calls of the protocol over one channel, each made again until it is answered.

    Args:
        channel: to the coordinator.
        name: who calls, on an insecure channel.
        sign: puts a signature into a mutating request.
        log: structlog's logger.
        ended: set when the client is to end.
        refused: is told of a call that failed, before it is made again.
    """

    channel: grpc.Channel
    name: str
    sign: Callable[[str, Any], None]
    log: Any
    ended: threading.Event
    refused: Callable[[Any], None] = lambda error: None

    def call(self, method: str, request: Any, seconds: float = CALL) -> Any:
        """The answer, however long it takes.

        Raises:
            Gone: the coordinator does not know what is asked about.
            UsageError: it refuses to be asked.
            KeyboardInterrupt: the client is to end.
        """
        pause = FIRST
        while True:
            self.rest(0.0)
            try:
                return self.answered(self.future(method, request, seconds))
            except grpc.RpcError as error:
                self.failed(method, error)
            # Between half of it and all of it: a thousand clients do not come back at one time.
            self.rest(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST)

    def future(self, method: str, request: Any, seconds: float) -> Any:
        """A call under way."""
        self.sign(method, request)
        asked, given = METHODS[method]
        call = self.channel.unary_unary(path(method), asked.SerializeToString, given.FromString)
        return call.future(request, timeout=seconds, metadata=((NAME, self.name),))

    def answered(self, under_way: Any) -> Any:
        """What comes of a call; raises KeyboardInterrupt if the client is to end."""
        while True:
            try:
                return under_way.result(timeout=LISTEN)
            except grpc.FutureTimeoutError:
                if self.ended.is_set():
                    under_way.cancel()
                    raise KeyboardInterrupt from None

    def failed(self, method: str, error: Any) -> None:
        """Pass over what may be otherwise next time; raises what will not."""
        self.refused(error)
        code, why = error.code(), error.details()
        if code in PASSING:
            self.log.info("call failed, to be made again", method=method, code=code.name, why=why)
            return
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
            raise Gone(why)
        raise UsageError(f"The coordinator refuses {method}: {why} ({code.name}).")

    def rest(self, seconds: float) -> None:
        """Wait; raises KeyboardInterrupt if the client is to end."""
        if self.ended.wait(seconds):
            raise KeyboardInterrupt


class Session:
    """One client at work for one coordinator.

    Args:
        line: to the coordinator.
        worker: does the tasks.
        workdir: for the journals; a folder for each run.
        number: wished for, from 1; None: any.
        evaluator: whether it measures models in place of training them.
        open_now: whether it is a time to work.
    """

    def __init__(
        self, line: Line, worker: Worker, workdir: Path, number: int | None = None, evaluator: bool = False,
        open_now: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self.line, self.worker, self.workdir, self.number = line, worker, workdir, number
        self.evaluator, self.open_now, self.log = evaluator, open_now, line.log

    def work(self) -> str:
        """Do tasks until the run is over; how it ended.

        Raises:
            UsageError, MismatchError: the client cannot take part; why.
            KeyboardInterrupt: it was told to end.
        """
        joined = self._join()
        self.run = joined.run
        if not re.fullmatch("[0-9a-f]{32}", self.run):
            raise UsageError("The coordinator's run has an id that is none: 32 hexadecimal digits are expected.")
        self.journal = Journal(self.workdir / self.run)
        try:
            self.journal.note("joined", number=joined.number, name=self.line.name)
            settings = json.loads(joined.settings)
            self.beat = min(BEAT, settings.get("silent_seconds", BEAT) / 4)
            self.worker.begin(settings, joined.number - 1)
            self.log = self.log.bind(client=joined.number)
            self.log.info("joined", run=self.run)
            if self.journal.pending is not None:
                self._hand_in(self.journal.pending)
            return self._until_over()
        finally:
            self.journal.close()

    def _join(self) -> Any:
        w = self.worker
        request = pb.JoinRequest(
            role=pb.EVALUATOR if self.evaluator else pb.CLIENT, number=self.number or 0, examples=w.examples,
            own_training=w.own_training,
        )  # fmt: skip
        joined = self.line.call("Join", request)
        if joined.refused:
            raise UsageError(f"The coordinator does not admit this client: {joined.refused}.")
        return joined

    def _until_over(self) -> str:
        while True:
            while not self.open_now():
                self.line.rest(30.0)
            try:
                polled = self.line.call("Poll", pb.PollRequest(run=self.run, wait_seconds=WAIT), WAIT + CALL)
            except Gone as gone:
                return f"The coordinator has gone on to another run: {gone}."
            if polled.state == pb.PollReply.OVER:
                self.log.info("run over", why=polled.message)
                return str(polled.message)
            if polled.state == pb.PollReply.TASK and polled.task.id == self.journal.settled:
                self.line.rest(FIRST)
            elif polled.state == pb.PollReply.TASK:
                self._do(polled.task)

    def _do(self, task: Any) -> None:
        log = self.log.bind(round=task.round, task=task.id)
        pending = self.journal.pending
        if pending is None or pending.task != task.id:
            self.journal.note("taken", task=task.id, round=task.round)
            failpoints.reached("client.taken")
            try:
                ask = self._fetched(task)
                failpoints.reached("client.fetched")
                with self._beating(task.id):
                    done = self.worker.perform(KINDS[task.kind], task.round, ask, local_of(task.local), self.journal.mine())
            except Gone as gone:
                log.info("task is over", why=str(gone))
                return
            except StoreError:
                raise
            except (
                FedweaveError, MemoryError, RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, OSError
            ) as error:  # fmt: skip
                log.error("task failed", why=f"{type(error).__name__}: {error}", exc_info=True)
                reason = str(error) if isinstance(error, FedweaveError) else type(error).__name__
                self._give_up(task, reason)
                return
            failpoints.reached("client.trained")
            metadata = {**done.metadata, **done.report.metadata()}
            pending = self.journal.trained(task.id, task.round, done.update, metadata, done.mine)
            failpoints.reached("client.updated")
        self._hand_in(pending)

    def _give_up(self, task: Any, reason: str) -> None:
        self.journal.note("failed", task=task.id, round=task.round, reason=reason[:500])
        try:
            self.line.call("Fail", pb.FailRequest(run=self.run, task=task.id, round=task.round, reason=reason[:500]))
        except Gone:
            return

    # What is received and sent -------------------------------------------------------------------------------------------

    def _fetched(self, task: Any) -> Content:
        """The ask; in a file, if it is large, which a restart finds again."""
        sent = task.ask
        blob = Blob.claimed(sent.id, sent.size, sent.chunks)
        if sent.inline:
            if Blob.of(sent.inline) != blob:
                raise DataError("the ask came damaged")
            return read(sent.inline)
        path = self.journal.folder / "ask.safetensors"
        try:
            self._gathered(task, blob, path)
        except OSError as error:
            folder = self.journal.folder
            raise StoreError(
                f"{folder} cannot be written: {error.strerror}. Free some space; the same command goes on."
            ) from None
        return read(path)

    def _gathered(self, task: Any, blob: Blob, path: Path) -> None:
        """Fetch an ask into a file."""
        intake = Intake(blob, self.journal.folder / "ask.part")
        try:
            self._in_flight(
                "FetchChunk",
                sorted(intake.missing),
                lambda index: pb.FetchChunkRequest(run=self.run, task=task.id, index=index),
                lambda index, reply: intake.put(index, reply.content),
            )
            intake.path.replace(path)
        finally:
            intake.close()

    def _in_flight(
        self, method: str, indices: Iterable[int], ask: Callable[[int], Any], take: Callable[[int, Any], None]
    ) -> None:
        """Calls for many chunks, a few at a time, each made again until it is answered and its answer is sound."""
        left = list(indices)[::-1]
        under_way: list[tuple[int, Any]] = []
        pause = FIRST
        while left or under_way:
            while left and len(under_way) < AHEAD:
                index = left.pop()
                under_way.append((index, self.line.future(method, ask(index), TRANSFER)))
            index, future = under_way.pop(0)
            try:
                take(index, self.line.answered(future))
                pause = FIRST
            except grpc.RpcError as error:
                self.line.failed(method, error)
            except DataError as error:
                self.log.warning("a chunk came damaged, and is fetched again", why=str(error))
            else:
                continue
            left.append(index)
            self.line.rest(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST)

    def _hand_in(self, made: Made) -> None:
        """Send an update until there is a verdict on it; the same bytes each time."""
        blob = made.blob
        inline = made.source if isinstance(made.source, bytes) else b""
        sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=inline)
        outlet = Outlet(blob, made.source)
        while True:
            request = pb.CommitRequest(run=self.run, task=made.task, round=made.round, update=sent)
            try:
                reply = self.line.call("Commit", request, TRANSFER)
                if reply.verdict != pb.CommitReply.INCOMPLETE:
                    break
                self._in_flight(
                    "PushChunk",
                    list(reply.missing),
                    lambda index: pb.PushChunkRequest(run=self.run, task=made.task, index=index, content=outlet.chunk(index)),
                    lambda index, reply: None,
                )
            except Gone as gone:
                reply = pb.CommitReply(verdict=pb.CommitReply.LATE, reason=str(gone))
                break
        failpoints.reached("client.committed")
        verdict = pb.CommitReply.Verdict.Name(reply.verdict).lower()
        self.journal.answered(verdict, reply.reason)
        failpoints.reached("client.settled")
        tell = self.log.info if verdict == "accepted" else self.log.warning
        tell(f"update {verdict}", round=made.round, task=made.task, **({"why": reply.reason} if reply.reason else {}))

    @contextmanager
    def _beating(self, task: str) -> Any:
        """Signs of life while a client trains."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.beat):
                try:
                    self.line.future("Heartbeat", pb.HeartbeatRequest(run=self.run, task=task), CALL).result()
                except grpc.RpcError:
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()


def hours(text: str) -> Callable[[], bool]:
    """``"22-6"``: whether it is that time of the day here, from the first hour up to the second.

    Raises:
        UsageError: it is no such text.
    """
    found = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text)
    if not found or not all(int(part) <= 24 for part in found.groups()):
        raise UsageError(f"--hours is {text!r}; write it like 22-6, from hour to hour of the day.")
    first, last = (int(part) % 24 for part in found.groups())

    def now() -> bool:
        hour = time.localtime().tm_hour
        return first <= hour < last if first < last else hour >= first or hour < last

    return now
