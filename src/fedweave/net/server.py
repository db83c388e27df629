# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of the protocol: calls in, answers out. It decides nothing: that is the core's affair."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from fedweave.errors import DataError, StoreError
from fedweave.net import failpoints
from fedweave.net.admission import Claim, declared, misplaced
from fedweave.net.core import Change, Core, GiveUp, Join, Offer, Reply, Tick
from fedweave.net.desk import Said
from fedweave.net.gate import Gate, Refused
from fedweave.net.run import Run
from fedweave.net.tasks import EVALUATOR, Report, Task, refusal, schema
from fedweave.store.events import Member
from fedweave.wire import CHUNK, INLINE, Blob, Intake, read
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, MUTATING, SERVICE
from fedweave.wire.tensors import HEADER

KINDS = {"train": pb.TRAIN, "survey": pb.SURVEY, "evaluate": pb.EVALUATE}
VERDICTS = {"accepted": pb.CommitReply.ACCEPTED, "refused": pb.CommitReply.REFUSED, "late": pb.CommitReply.LATE}
LISTED = 4096
"""Chunks that are named as missing at a time."""
TICK = 1.0
"""Seconds between two looks at who has gone silent."""


class Federation:
    """The service.

    Args:
        run: what is served.
        gate: says who calls.
        log: structlog's logger.
        seen: told of every call that is over: its name, its status code, its seconds.
        met: told of a client that joins: its name, how many have, and of how many.
    """

    def __init__(
        self, run: Run, gate: Gate, log: Any, seen: Callable[[str, str, float], None] | None = None,
        met: Callable[[str, int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.run, self.gate, self.log = run, gate, log
        self.count = seen or (lambda method, code, seconds: None)
        self.met = met or (lambda name, joined, of: None)
        self.core = Core(run, self._changed, offline=self._offline)
        self.ended = ""
        self.told: set[int] = set()
        self.over = asyncio.Event()
        self.draining = False
        self.contact: dict[int, float] = {}
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, dict[str, Task]] = {}
        self._since: dict[str, float] = {}
        self._polling: dict[int, int] = {}
        self._wake: dict[int, asyncio.Event] = {}
        self._kick = asyncio.Event()
        self._intakes: dict[str, Intake] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._unwritten = ""

    # Life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Replay; from then on calls are answered."""
        await asyncio.to_thread(self.core.start)
        if self.run.finished:
            self._applied(Change(ended=self.run.about.get("message", "The run is over.")))

    async def watch(self) -> None:
        """Tell the core when time has passed; for ever."""
        while True:
            now, due = self.core.now, self.core.next_due()
            silent = self._silent()
            if silent or (due is not None and due <= now):
                await asyncio.wrap_future(self.core.submit(Tick(silent)))
                continue
            self._kick.clear()
            wait = TICK if due is None else max(min(TICK, due - now), 0.0)
            try:
                async with asyncio.timeout(wait):
                    await self._kick.wait()
            except TimeoutError:
                pass

    def _silent(self) -> tuple[str, ...]:
        now, most = time.monotonic(), self.run.limits.silent_seconds
        return tuple(
            task.id
            for client, tasks in self._open.items()
            if not self._polling.get(client)
            for task in tasks.values()
            if now - max(self.contact.get(client, 0.0), self._since.get(task.id, now)) > most
        )

    def _offline(self) -> frozenset[int]:
        """Clients that nobody has heard of for so long that a task of theirs would be given up; in the core's thread."""
        since = time.monotonic() - self.run.limits.silent_seconds
        return frozenset(
            member.number
            for member in self.run.members
            if member.number != EVALUATOR
            and not self._polling.get(member.number)
            and self.contact.get(member.number, self._began) < since
        )

    def _changed(self, change: Change) -> None:
        self._loop.call_soon_threadsafe(self._applied, change)

    def _applied(self, change: Change) -> None:
        for task in change.opened:
            self._open.setdefault(task.client, {})[task.id] = task
            self._since[task.id] = time.monotonic()
            if (event := self._wake.get(task.client)) is not None:
                event.set()
        for task in change.closed:
            self._open.get(task.client, {}).pop(task.id, None)
            self._since.pop(task.id, None)
            if (intake := self._intakes.pop(task.id, None)) is not None:
                intake.close()
                intake.path.unlink(missing_ok=True)
            self._locks.pop(task.id, None)
        if change.ended is not None:
            self.ended = change.ended
            self.over.set()
            for event in self._wake.values():
                event.set()
        self._kick.set()

    # Calls ---------------------------------------------------------------------------------------------------------------

    def handlers(self, methods: Iterable[str] = METHODS) -> grpc.GenericRpcHandler:
        """For gRPC's server; of these calls alone."""
        found = {}
        for method in methods:
            request, reply = METHODS[method]
            found[method] = grpc.unary_unary_rpc_method_handler(
                self._guarded(method), request_deserializer=request.FromString, response_serializer=reply.SerializeToString
            )
        return grpc.method_handlers_generic_handler(SERVICE, found)

    def _guarded(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        """A call's code behind all that is asked of every call."""
        work = getattr(self, f"_{method.lower()}", None)

        async def answer(request: Any, context: Any) -> Any:
            began, code = time.monotonic(), "OK"
            try:
                if method == "Enrol":
                    return await asyncio.to_thread(self.gate.enrol, request)
                name = self.gate.name(context)
                if getattr(request, "run", "") not in ("", self.run.id):
                    raise Refused(grpc.StatusCode.NOT_FOUND, "this coordinator serves another run")
                if method in MUTATING:
                    self.gate.signed(method, request, name)
                assert work is not None
                reply = await work(request, name)
                if method in ("PushChunk", "Commit"):
                    self._unwritten = ""
                return reply
            except Refused as refused:
                code, why = refused.code.name, refused.why
                self.log.warning("refused", method=method, code=code, why=why)
                await context.abort(refused.code, why, tuple(refused.beside))
            except DataError as error:
                code = "INVALID_ARGUMENT"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except (StoreError, OSError) as error:
                code, self._unwritten = "UNAVAILABLE", str(error)
                self.log.error("unavailable", method=method, why=str(error))
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write at the moment; come again")
            finally:
                self.count(method, code, time.monotonic() - began)

        return answer

    def _member(self, name: str) -> Member:
        found = next((m for m in self.run.members if m.name == name), None)
        if found is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "join first")
        self.contact[found.number] = time.monotonic()
        return found

    def _task(self, id: str, member: Member) -> Task | None:
        return self._open.get(member.number, {}).get(id)

    async def _join(self, request: Any, name: str) -> Any:
        wish = Join(
            name, request.number - 1 if request.number else None, request.examples, request.own_training,
            request.role == pb.EVALUATOR,
        )  # fmt: skip
        before = {member.name for member in self.run.members}
        why = None if wish.evaluator else declared(request.examples)
        found: Member | str = why if why is not None else await asyncio.wrap_future(self.core.submit(wish))
        if isinstance(found, str):
            self.log.warning("not admitted", client=name, why=found)
            return pb.JoinReply(run=self.run.id, refused=found)
        self.log.info("joined", client=name, number=found.number + 1, examples=found.examples)
        if name not in before and not wish.evaluator:
            joined = sum(member.number != EVALUATOR for member in self.run.members)
            self.met(name, joined, self.run.population)
        self.contact[found.number] = time.monotonic()
        return pb.JoinReply(run=self.run.id, number=found.number + 1, settings=self.run.settings())

    async def _poll(self, request: Any, name: str) -> Any:
        client = self._member(name).number
        wait = min(max(request.wait_seconds, 0.0), self.run.limits.poll_seconds, 60.0)
        event = self._wake.setdefault(client, asyncio.Event())
        self._polling[client] = self._polling.get(client, 0) + 1
        try:
            async with asyncio.timeout(wait):
                while not self.ended and not self._open.get(client):
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            self._polling[client] -= 1
            self.contact[client] = time.monotonic()
        if self.ended:
            self.told.add(client)
            return pb.PollReply(state=pb.PollReply.OVER, message=self.ended)
        if not (tasks := self._open.get(client)):
            return pb.PollReply(state=pb.PollReply.WAIT)
        task = next(iter(tasks.values()))
        blob, source = task.ask.blob, task.ask.source
        inline = source if isinstance(source, bytes) and len(source) <= INLINE else b""
        ask = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=inline)
        left = max(task.seconds - (self.core.now - task.began), 0.001) if task.seconds else 0.0
        told = pb.Task(id=task.id, kind=KINDS[task.kind], round=task.round, ask=ask, local=task.local, seconds=left)
        return pb.PollReply(state=pb.PollReply.TASK, task=told)

    async def _fetchchunk(self, request: Any, name: str) -> Any:
        task = self._task(request.task, self._member(name))
        if task is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "the task is over")
        outlet = task.ask
        if isinstance(outlet.source, bytes):
            return pb.FetchChunkReply(content=outlet.chunk(request.index))
        return pb.FetchChunkReply(content=await asyncio.to_thread(outlet.chunk, request.index))

    async def _pushchunk(self, request: Any, name: str) -> Any:
        task = self._task(request.task, self._member(name))
        intake = None if task is None else self._intakes.get(task.id)
        if intake is None:
            return pb.PushChunkReply(known=False)
        if len(request.content) > CHUNK:
            raise DataError(f"a chunk of {len(request.content)} bytes is larger than {CHUNK}")
        await asyncio.to_thread(intake.put, request.index, request.content)
        return pb.PushChunkReply(known=True)

    async def _commit(self, request: Any, name: str) -> Any:
        member = self._member(name)
        task = self._task(request.task, member)
        blob = Blob.claimed(request.update.id, request.update.size, request.update.chunks)
        if task is None:
            return await self._judged(Offer(request.task, member.number, blob.id.hex(), None, None, round=request.round))
        awaited = Claim(self.run.id, task.round, task.id, member.name, self._largest(task))
        if why := misplaced(Claim(request.run, request.round, request.task, name, blob.size), awaited):
            return await self._judged(Offer(task.id, member.number, blob.id.hex(), None, None, why))
        if blob.size <= INLINE:
            content = request.update.inline
            if Blob.of(content) != blob:
                raise DataError("a small update must come inline, and is not what its blob says")
            said, why_not = self._opened(content, task, member)
            return await self._judged(Offer(task.id, member.number, blob.id.hex(), content, said, why_not))
        async with self._locks.setdefault(task.id, asyncio.Lock()):
            return await self._taken_in(task, member, blob)

    async def _taken_in(self, task: Task, member: Member, blob: Blob) -> Any:
        intake = self._intakes.get(task.id)
        if intake is None or intake.blob != blob:
            if intake is not None:
                intake.close()
            path = self.run.updates / f"incoming-{task.id}.part"
            intake = await asyncio.to_thread(Intake, blob, path)
            if self._task(task.id, member) is None:
                intake.close()
                return await self._judged(Offer(task.id, member.number, blob.id.hex(), None, None))
            self._intakes[task.id] = intake
        if intake.missing:
            return pb.CommitReply(verdict=pb.CommitReply.INCOMPLETE, missing=sorted(intake.missing)[:LISTED])
        failpoints.reached("update.received")
        path = self.run.path(blob.id.hex())
        del self._intakes[task.id]
        try:
            await asyncio.to_thread(intake.finish, path)
        except OSError:
            # After an fsync that failed nobody knows what is on disk: it has to come again.
            intake.close()
            intake.path.unlink(missing_ok=True)
            raise
        failpoints.reached("update.renamed")
        said, why = await asyncio.to_thread(self._opened, path, task, member)
        return await self._judged(Offer(task.id, member.number, blob.id.hex(), None, said, why))

    def _opened(self, source: Any, task: Task, member: Member) -> tuple[Said | None, str | None]:
        """What an update holds, and why it may not enter the model."""
        desk = self.core.desk
        assert desk is not None
        try:
            if task.kind == "evaluate":
                return Said(read(source), Report()), None
            expected = desk.expected(task.kind == "survey")
            content = read(source, schema(expected))
            report = Report.of(content.metadata)
            return Said(content, report), refusal(content, expected, report, member.examples, self.run.limits.weight_cap)
        except DataError as error:
            return None, str(error)

    def _largest(self, task: Task) -> int:
        desk = self.core.desk
        if task.kind == "evaluate" or desk is None:
            return INLINE
        return desk.bytes_of(task.kind == "survey") + HEADER

    async def _judged(self, offer: Offer) -> Any:
        reply: Reply = await asyncio.wrap_future(self.core.submit(offer))
        failpoints.reached("replied")
        if reply.verdict != "accepted":
            self.log.warning("update " + reply.verdict, client=offer.client + 1, task=offer.task, why=reply.reason)
        return pb.CommitReply(verdict=VERDICTS[reply.verdict], reason=reply.reason)

    async def _fail(self, request: Any, name: str) -> Any:
        member = self._member(name)
        self.log.warning("client failed", client=name, task=request.task, why=request.reason[:500])
        await asyncio.wrap_future(self.core.submit(GiveUp(request.task, member.number, request.reason[:500])))
        return pb.FailReply()

    async def _heartbeat(self, request: Any, name: str) -> Any:
        return pb.HeartbeatReply(wanted=self._task(request.task, self._member(name)) is not None)

    async def _status(self, request: Any, name: str) -> Any:
        return pb.StatusReply(**self.status())

    @property
    def wrong(self) -> str:
        """What keeps the run from going on; empty if nothing does."""
        failed = "" if self.core.failed is None else str(self.core.failed)
        return self.core.degraded or failed or ("" if self.ended else self._unwritten)

    def status(self) -> dict[str, Any]:
        """Where the run stands."""
        run, desk = self.run, self.core.desk
        joined = sum(m.number != EVALUATOR for m in run.members)
        phase: str = "over" if self.ended else "gathering" if desk is None else desk.coordinator.phase
        if self.draining and not self.ended:
            phase = "draining"
        message = self.ended or (self.wrong and f"Waiting until it can be written: {self.wrong}")
        return {
            "run": run.id,
            "phase": phase,
            "round": 0 if desk is None else desk.coordinator.round,
            "rounds": run.terms.rules.rounds,
            "clients": joined,
            "expected": run.population,
            "message": message,
        }
