# SPDX-License-Identifier: Apache-2.0
"""The coordinator's own service over mutual TLS: a run among certified clients, every endpoint with every credential, replays
and bad updates over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import json
import queue
import re
import runpy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy

from fedweave.net import certified, logs, tls
from fedweave.net.certified import Certified, Seal
from fedweave.net.client import OPTIONS, Line, Session
from fedweave.net.identity import Identity, enrol, renew
from fedweave.net.own import OwnWorker
from fedweave.net.pki import Authority
from fedweave.net.serving import Serving, serve
from fedweave.wire import Blob, encode
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, MUTATING, path

HERE = Path(__file__).parent
DEPLOYING = runpy.run_path(str(HERE / "deploying.py"))
STRANGERS = runpy.run_path(str(HERE / "test_tls.py"))["STRANGERS"]
Pull, configured, expected = (DEPLOYING[name] for name in ("Pull", "configured", "expected"))
Site = Any


@contextmanager
def coordinator(site: Site, config: Any, out: Path) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Served with certificates in a thread: its address, that of the enrolment, and what waits for its end."""
    ready: queue.Queue[Any] = queue.Queue()
    ended: list[Any] = []
    gate = Certified(Authority.open(site.authority.folder), ["127.0.0.1"], "127.0.0.1:0")
    how = Serving(listen="127.0.0.1:0", signals=False, ready=ready.put, gate=gate, linger=1.0)

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

    yield address, json.loads((out / "serving.json").read_text())["enrol"], wait


def line(address: str, own: Identity, seal: Any = None, ended: threading.Event | None = None) -> Line:
    seal = seal or Seal(own)
    channel = certified.channel(own, address)
    return Line(channel, "somebody else", seal, logs.logger(io.StringIO()), ended or threading.Event(), seal.refused)


def answer(address: str, credentials: Any, method: str, request: Any) -> Any:
    """One call, made once."""
    asked, given = METHODS[method]
    with grpc.secure_channel(address, credentials, options=OPTIONS) as channel:
        return channel.unary_unary(path(method), asked.SerializeToString, given.FromString)(request, timeout=20)


def working(session: Session) -> threading.Thread:
    """A client in a thread, which ends with the run or when it is told to."""

    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            session.work()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def weights(folder: Path) -> Any:
    return safetensors.numpy.load_file(folder / "final.safetensors")["w"]


def sealed(own: Identity, method: str, **fields: Any) -> Any:
    request = METHODS[method][0](**fields)
    Seal(own)(method, request)
    return request


def test_certified_clients_train_to_the_same_model(site: Site, tmp_path: Path) -> None:
    """Enrolled over the network with a token, in a run over mutual TLS: the closed form of FedAvg, to the bit."""
    workers = [Pull(number, 7) for number in range(3)]
    stop = threading.Event()
    with coordinator(site, configured(tmp_path, 7, 3, 4), tmp_path / "run") as (address, enrolment, wait):
        for number, worker in enumerate(workers, 1):
            folder = tmp_path / f"c{number}"
            own = enrol(folder, site.authority.token(f"c{number}"), certified.enrolling(enrolment))
            working(Session(line(address, own, ended=stop), OwnWorker(worker), folder, number))
        try:
            assert "4 rounds" in wait()
        finally:
            stop.set()
    np.testing.assert_array_equal(weights(tmp_path / "run"), expected(workers, 4))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "c1" in log
    assert "PRIVATE" not in log
    assert "fedweave-token_" not in log


@pytest.fixture
def open_run(site: Site, tmp_path: Path) -> Iterator[tuple[Site, str, str]]:
    """A run of two clients that has not begun: nobody has joined."""
    with coordinator(site, configured(tmp_path, 3, 2, 2), tmp_path / "run") as (address, enrolment, _):
        yield site, address, enrolment


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda make: make.__name__)
def test_a_stranger_is_refused_at_every_endpoint_of_the_coordinator(open_run: Any, stranger: Any) -> None:
    site, address, enrolment = open_run
    credentials = stranger(site)
    for method, (request, _) in METHODS.items():
        with pytest.raises(grpc.RpcError) as caught:
            answer(address, credentials, method, request(**({"run": ""} if method == "Join" else {})))
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE), method
    # The other port gives certificates for tokens, and nothing else to anybody.
    for method, (request, _) in METHODS.items():
        with pytest.raises(grpc.RpcError) as caught:
            answer(enrolment, grpc.ssl_channel_credentials(site.authority.pem), method, request())
        wanted = grpc.StatusCode.PERMISSION_DENIED if method == "Enrol" else grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.code() is wanted, method
    status = answer(address, tls.channel_credentials(site.client("bob")), "Status", pb.StatusRequest())
    assert status.clients == 0


def test_a_changing_request_without_its_seal_is_refused(open_run: Any) -> None:
    site, address, _ = open_run
    ada, eve = site.client("ada"), site.client("eve")
    run = answer(address, tls.channel_credentials(ada), "Status", pb.StatusRequest()).run
    for method in MUTATING:
        good = sealed(ada, method, run=run)
        others = [
            METHODS[method][0](run=run),  # no seal
            sealed(eve, method, run=run),  # another's
            METHODS[method][0](run="", signature=good.signature),  # over another run
        ]
        for request in others:
            with pytest.raises(grpc.RpcError) as caught:
                answer(address, tls.channel_credentials(ada), method, request)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    status = answer(address, tls.channel_credentials(ada), "Status", pb.StatusRequest())
    assert status.clients == 0


def test_a_replay_is_refused_also_after_a_restart(site: Site, tmp_path: Path) -> None:
    ada, config = site.client("ada"), configured(tmp_path, 3, 2, 2)
    credentials, request = tls.channel_credentials(ada), sealed(ada, "Join", examples=10, own_training=True)
    with coordinator(site, config, tmp_path / "run") as (address, _, _):
        assert answer(address, credentials, "Join", request).number == 1
        with pytest.raises(grpc.RpcError, match="replay"):
            answer(address, credentials, "Join", request)
    # Another coordinator of the same authority stands in for the same one started again.
    with coordinator(site, config, tmp_path / "again") as (address, _, _):
        with pytest.raises(grpc.RpcError) as caught:
            answer(address, credentials, "Join", request)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        # The client that goes on signs above the floor that it is told, by itself.
        assert line(address, ada).call("Join", pb.JoinRequest(examples=10, own_training=True)).number == 1


def test_a_name_in_the_metadata_means_nothing(open_run: Any) -> None:
    site, address, _ = open_run
    eve = site.client("eve")
    joined = line(address, eve).call("Join", pb.JoinRequest(examples=10, own_training=True))
    assert joined.number == 1
    again = replace(line(address, eve), name="ada").call("Join", pb.JoinRequest(examples=10, own_training=True))
    assert again.number == 1, "the same client"


def test_revocation_ends_a_poll_that_waits(open_run: Any) -> None:
    site, address, _ = open_run
    ada = site.client("ada")
    run = line(address, ada).call("Join", pb.JoinRequest(examples=10, own_training=True)).run
    asked, given = METHODS["Poll"]
    with certified.channel(ada, address) as channel:
        call = channel.unary_unary(path("Poll"), asked.SerializeToString, given.FromString)
        waiting = call.future(pb.PollRequest(run=run, wait_seconds=30), timeout=60)
        answer(address, tls.channel_credentials(site.client("bob")), "Status", pb.StatusRequest())
        site.authority.revoke("ada")
        with pytest.raises(grpc.RpcError, match="was revoked"):
            waiting.result()
        with pytest.raises(grpc.RpcError, match="was revoked"):
            call(pb.PollRequest(run=run), timeout=20)


def test_a_client_renews_over_its_own_connection(open_run: Any) -> None:
    site, address, _ = open_run
    old = site.client("ada")
    new = renew(site.folder / "ada", certified.renewing(site.folder / "ada", address))
    assert new.certificate != old.certificate
    assert line(address, new).call("Join", pb.JoinRequest(examples=10, own_training=True)).number == 1


def test_a_client_that_joins_renews_when_a_third_is_left(open_run: Any, tmp_path: Path) -> None:
    from fedweave.app.net_commands import _known
    from fedweave.net.sites import Joining

    site, address, _ = open_run
    for name, days, renewed in (("short", 0.4, True), ("long", 90.0, False)):
        folder = tmp_path / name
        own = enrol(folder, site.authority.token(name), lambda csr, token, d=days: site.authority.enrol(csr, token, days=d))
        known = _known(Joining(address, "x:y", folder, "somebody"), None)
        assert known.name == name
        assert (Identity.load(folder).certificate != own.certificate) == renewed
    # A coordinator that does not answer is no reason not to go on with what there is.
    folder = tmp_path / "alone"
    own = enrol(folder, site.authority.token("alone"), lambda csr, token: site.authority.enrol(csr, token, days=0.4))
    site.authority.revoke("alone")
    assert _known(Joining(address, "x:y", folder, "somebody"), None).name == "alone"
    assert Identity.load(folder).certificate == own.certificate


def test_a_client_renews_while_it_works(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys change between two tasks, with an update or two on their way before and after; nothing is lost."""
    monkeypatch.setattr(certified, "LOOK", 0.0)
    rounds, pulls, stop = 12, [Pull(k, 30) for k in range(2)], threading.Event()
    ahead = [datetime.timedelta()]
    with coordinator(site, configured(tmp_path, 30, 2, rounds), tmp_path / "run") as (address, _, wait):
        names, old = ["ada", "bob"], {}
        for k, name in enumerate(names):
            old[name] = site.client(name).certificate
            known = certified.Known(site.folder / name, address, lambda: certified.wall() + ahead[0])
            assert known.own.certificate == old[name]
            way = Line(known, name, known.sign, logs.logger(io.StringIO()), stop, known.refused)
            pulls[k].train = meanwhile(pulls[k].train, ahead)
            working(Session(way, OwnWorker(pulls[k]), tmp_path / f"work-{name}", k + 1))
        wait()
    for name in names:
        assert Identity.load(site.folder / name).certificate != old[name]
    entries = [entry for entry in site.authority.listing() if entry.client == "ada"]
    assert len(entries) >= 2
    np.testing.assert_array_equal(weights(tmp_path / "run"), expected(pulls, rounds))


def meanwhile(train: Any, ahead: list[datetime.timedelta]) -> Any:
    """Seventy days pass for the clients in the fourth round."""

    def work(values: Any, turn: Any) -> Any:
        if turn.round == 4:
            ahead[0] = datetime.timedelta(days=70)
        if turn.round == 8:
            ahead[0] = datetime.timedelta()
        return train(values, turn)

    return work


def test_a_declaration_that_is_none_is_refused_at_the_door(open_run: Any) -> None:
    site, address, _ = open_run
    for examples in (0, 2**50):
        joined = line(address, site.client("ada")).call("Join", pb.JoinRequest(examples=examples, own_training=True))
        assert "examples; it must be a whole number" in joined.refused


GOOD = {"delta": np.ones(3, np.float32), "weight": 10}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": (GOOD | {"delta": np.array([1, np.nan, 1], np.float32)}, "not finite"),
    "Inf": (GOOD | {"delta": np.array([1, np.inf, 1], np.float32)}, "not finite"),
    "shape": (GOOD | {"delta": np.ones(1, np.float32)}, "shape"),
    "dtype": (GOOD | {"delta": np.ones(3, np.float64)}, "type 'F64'"),
    "missing key": ({"weight": 10}, "lacks"),
    "extra key": (GOOD | {"more": np.ones(3, np.float32)}, "nobody asked for"),
    "no weight": ({"delta": GOOD["delta"]}, "lacks 'weight'"),
    "weight 0": (GOOD | {"weight": 0}, "its weight is 0"),
    "weight below 0": (GOOD | {"weight": -9.0}, "its weight is -9"),
    "weight NaN": (GOOD | {"weight": float("nan")}, "its weight is nan"),
    "weight 1e300": (GOOD | {"weight": 1e300}, "its weight is 1e[+]300"),
    "weight of 400 digits": (GOOD | {"weight": 10**400}, "no number of 64 bits"),
    "oversize": (GOOD | {"delta": np.ones(2**20, np.float32)}, "at most"),
    "a header bomb": ({f"t{number}": np.zeros(0, np.uint8) for number in range(1000)}, "its header has"),
}


def test_bad_updates_are_refused_and_the_model_is_that_without_the_client(site: Site, tmp_path: Path) -> None:
    """One client after another sends a bad update, a round each; the other one's pull is all that moves the model."""
    rounds = len(BAD) + 3
    good, stop = Pull(0, 3), threading.Event()
    with coordinator(site, configured(tmp_path, 3, 2, rounds), tmp_path / "run") as (address, _, wait):
        own = site.client("good")
        session = Session(line(address, own, ended=stop), OwnWorker(good), tmp_path / "good", 1)
        working(session)
        eve = line(address, site.client("eve"))
        run = eve.call("Join", pb.JoinRequest(number=2, examples=10, own_training=True)).run
        tasks = []

        def task() -> Any:
            while (polled := eve.call("Poll", pb.PollRequest(run=run, wait_seconds=20))).state != pb.PollReply.TASK:
                assert polled.state == pb.PollReply.WAIT
            tasks.append(polled.task)
            return polled.task

        def commit(id: str, round: int, content: bytes) -> Any:
            blob = Blob.of(content)
            inline = content if blob.size <= 65_536 else b""
            sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=inline)
            return eve.call("Commit", pb.CommitRequest(run=run, task=id, round=round, update=sent))

        said = {}
        report = {"report": json.dumps({"examples": 10, "steps": 1, "loss": 1.0})}
        for name, (values, reason) in BAD.items():
            now = task()
            reply = commit(now.id, now.round, encode(values, report))
            assert reply.verdict == pb.CommitReply.REFUSED, (name, reply)
            assert re.search(reason, reply.reason), (name, reply.reason)
            said[now.round] = reply.reason
        # A stale round for the task at hand; a task that is over; a report of more than was declared.
        now = task()
        assert "is awaited" in commit(now.id, now.round - 1, encode(GOOD, report)).reason
        late = commit(tasks[0].id, tasks[0].round, encode(GOOD, report))
        assert late.verdict != pb.CommitReply.ACCEPTED
        now = task()
        more = {"report": json.dumps({"examples": 11, "steps": 1, "loss": 1.0})}
        assert "counts 11 examples" in commit(now.id, now.round, encode(GOOD, more)).reason
        now = task()
        assert "report" in commit(now.id, now.round, encode(GOOD)).reason
        wait()
        stop.set()
    np.testing.assert_array_equal(weights(tmp_path / "run"), expected([good], rounds))
    records = [json.loads(text) for text in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    kept = {record["number"]: dict(map(tuple, record["refused"])) for record in records if record["number"] > 0}
    assert {number: reasons.get(1) for number, reasons in kept.items() if number in said} == said


def test_another_clients_task_cannot_be_answered(site: Site, tmp_path: Path) -> None:
    """The id of another's task is known, and everything else is right."""
    with coordinator(site, configured(tmp_path, 3, 2, 1), tmp_path / "run") as (address, _, wait):
        lines = {name: line(address, site.client(name)) for name in ("ada", "eve")}
        for number, one in enumerate(lines.values(), 1):
            run = one.call("Join", pb.JoinRequest(number=number, examples=10, own_training=True)).run
        task = {name: one.call("Poll", pb.PollRequest(run=run, wait_seconds=20)).task for name, one in lines.items()}
        report = {"report": json.dumps({"examples": 10, "steps": 1, "loss": 1.0})}

        def commit(who: str, of: str, delta: float) -> Any:
            content = encode({"delta": np.full(3, delta, np.float32), "weight": 10}, report)
            blob = Blob.of(content)
            sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=content)
            return lines[who].call("Commit", pb.CommitRequest(run=run, task=task[of].id, round=1, update=sent)).verdict

        with pytest.raises(Exception, match="task"):
            lines["eve"].call("FetchChunk", pb.FetchChunkRequest(run=run, task=task["ada"].id))
        assert commit("eve", "ada", 100.0) != pb.CommitReply.ACCEPTED
        assert commit("ada", "ada", 1.0) == pb.CommitReply.ACCEPTED
        assert commit("eve", "eve", 3.0) == pb.CommitReply.ACCEPTED
        wait()
    np.testing.assert_array_equal(weights(tmp_path / "run"), np.full(3, 2.0))
