# SPDX-License-Identifier: Apache-2.0
"""The coordinator's process, met by clients of every kind, over real sockets."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from checking import check
from deploying import Pull, configured, expected, joined, line, served

from fedweave.errors import StoreError, UsageError
from fedweave.net import core
from fedweave.net.client import Gone, Session
from fedweave.net.core import Core, Join, Offer, Tick
from fedweave.net.desk import Said
from fedweave.net.opening import begin
from fedweave.net.own import Done, OwnWorker
from fedweave.net.run import Limits, Run
from fedweave.net.serving import Serving
from fedweave.net.tasks import Report
from fedweave.simulation import load_result
from fedweave.store import RunStore
from fedweave.store.events import EventLog
from fedweave.wire import Blob, encode, read
from fedweave.wire import fedweave_pb2 as pb

SIZE = 8
REPORT = {"report": json.dumps({"examples": 10, "steps": 1, "loss": 0.5})}


def _quietly(session: Session) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        session.work()


class Bad(OwnWorker):
    """A client whose updates are changed on their way out."""

    def __init__(self, pull: Pull, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(pull)
        self.change = change

    def perform(self, *given: Any) -> Done:
        done = super().perform(*given)
        return Done(self.change(done.update), done.report, done.mine)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda update: {**update, name: value}


def spoilt(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda update: {**update, "delta": np.where(np.arange(SIZE) == 3, np.float32(value), update["delta"])}


BAD = {
    "nan": (spoilt(math.nan), "not finite"),
    "infinite": (spoilt(math.inf), "not finite"),
    "minus infinite": (spoilt(-math.inf), "not finite"),
    "shape": (put("delta", np.zeros(SIZE + 1, np.float32)), "shape"),
    "a shape that would be broadcast": (put("delta", np.zeros(1, np.float32)), "shape"),
    "type": (put("delta", np.zeros(SIZE, np.float64)), "type"),
    "missing": (lambda update: {"weight": update["weight"]}, "lacks 'delta'"),
    "extra": (put("more", 1.0), "nobody asked for"),
    "negative weight": (put("weight", -9), "weight"),
    "weight nan": (put("weight", math.nan), "weight"),
    "weight infinite": (put("weight", math.inf), "weight"),
    "weight huge": (put("weight", 1e300), "weight"),
    "weight an array": (put("weight", np.ones(1)), "weight"),
    "oversize": (put("delta", np.zeros(1 << 19, np.float32)), "bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_refused_with_a_reason_and_the_round_goes_on(kind: str, tmp_path: Path) -> None:
    change, why = BAD[kind]
    pulls = [Pull(k, SIZE) for k in range(3)]
    config = configured(tmp_path, SIZE, 3, 2)
    with served(config, tmp_path / "run") as (address, wait):
        workers = [OwnWorker(pulls[0]), Bad(pulls[1], change), OwnWorker(pulls[2])]
        with joined(address, workers, tmp_path / "work"):
            pass
        wait()
    result = load_result(tmp_path / "run")
    assert np.array_equal(result.weights["w"], expected(pulls, 2, lambda round: [0, 2]))
    for record in result.history:
        (client, reason), *rest = record.refused
        assert not rest
        assert client == 1
        assert why in reason
    lines = (tmp_path / "work" / "c2").glob("*/journal.jsonl")
    told = [json.loads(line) for path in lines for line in path.read_text().splitlines()]
    assert any(line["event"] == "answered" and line["verdict"] == "refused" and why in line["reason"] for line in told)


def committed(stub: Any, run: str, task: Any, values: dict[str, Any], report: dict[str, str] = REPORT) -> Any:
    content = encode(values, report)
    blob = Blob.of(content)
    sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=content)
    return stub.call("Commit", pb.CommitRequest(run=run, task=task, round=1, update=sent))


def test_an_answer_is_taken_once_and_only_from_whom_it_was_asked(tmp_path: Path) -> None:
    config = configured(tmp_path, SIZE, 2, 1)
    with served(config, tmp_path / "run") as (address, wait):
        a, b = line(address, "a"), line(address, "b")
        run = a.call("Join", pb.JoinRequest(examples=10)).run
        b.call("Join", pb.JoinRequest(examples=10))
        task, other = (who.call("Poll", pb.PollRequest(run=run, wait_seconds=10)).task for who in (a, b))
        assert task.id != other.id
        good = {"delta": np.ones(SIZE, np.float32), "weight": 10}
        # Another's task, and one that does not exist.
        assert committed(b, run, task.id, good).verdict == pb.CommitReply.LATE
        assert committed(a, run, "0" * 32, good).verdict == pb.CommitReply.LATE
        for _ in range(3):
            assert committed(a, run, task.id, good).verdict == pb.CommitReply.ACCEPTED
        changed = committed(a, run, task.id, {**good, "weight": 9})
        assert (changed.verdict, changed.reason) == (pb.CommitReply.REFUSED, "another update was sent for this task before")
        assert committed(b, run, task.id, good).reason == "the task is another client's"
        assert committed(b, run, other.id, {**good, "delta": good["delta"] * 3}).verdict == pb.CommitReply.ACCEPTED
        assert committed(a, run, task.id, good).verdict == pb.CommitReply.ACCEPTED
        for who in (a, b):
            assert who.call("Poll", pb.PollRequest(run=run, wait_seconds=10)).state == pb.PollReply.OVER
        wait()
        for who in (a, b):
            who.channel.close()
    assert np.array_equal(load_result(tmp_path / "run").weights["w"], np.full(SIZE, 2, np.float32))
    assert "contradiction" in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("Poll", pb.PollRequest(wait_seconds=1), grpc.StatusCode.FAILED_PRECONDITION),
        ("Poll", pb.PollRequest(run="0" * 32), grpc.StatusCode.NOT_FOUND),
        ("Commit", pb.CommitRequest(task="x", update=pb.Blob(size=1 << 50)), grpc.StatusCode.FAILED_PRECONDITION),
        ("FetchChunk", pb.FetchChunkRequest(task="../../etc/passwd"), grpc.StatusCode.FAILED_PRECONDITION),
        ("PushChunk", pb.PushChunkRequest(content=b"x" * (5 << 20)), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("Enrol", pb.EnrolRequest(token="x"), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_calls_out_of_place_are_refused(method: str, request_: Any, code: grpc.StatusCode, tmp_path: Path) -> None:
    with served(configured(tmp_path, SIZE, 2, 1), tmp_path / "run", Serving(linger=0.0)) as (address, _):
        who = line(address, "nobody")
        with pytest.raises(grpc.RpcError) as caught:
            who.future(method, request_, 10).result()
        assert caught.value.code() == code
        who.channel.close()


def test_who_joined_may_still_say_nonsense(tmp_path: Path) -> None:
    with served(configured(tmp_path, SIZE, 2, 1), tmp_path / "run") as (address, _):
        who = line(address, "a")
        joining = who.call("Join", pb.JoinRequest(examples=10))
        run = joining.run
        assert who.call("Join", pb.JoinRequest(examples=10)).number == joining.number == 1
        changed = who.call("Join", pb.JoinRequest(examples=11)).refused
        assert "with 10 examples, and now comes with 11" in changed
        assert "begin a new run" in changed
        assert "to train its own way" in who.call("Join", pb.JoinRequest(examples=10, own_training=True)).refused
        assert "another role" in who.call("Join", pb.JoinRequest(examples=10, role=pb.EVALUATOR)).refused
        huge = pb.Blob(size=1 << 50)
        with pytest.raises(Gone, match="too large"):
            who.call("Commit", pb.CommitRequest(run=run, task="x", update=huge))
        with pytest.raises(Gone, match="id"):
            who.call("Commit", pb.CommitRequest(run=run, task="x", update=pb.Blob(size=1, chunks=[b"y" * 32], id=b"z")))
        with pytest.raises(Gone, match="over"):
            who.call("FetchChunk", pb.FetchChunkRequest(run=run, task="\0../../x", index=2**32 - 1))
        assert not who.call("PushChunk", pb.PushChunkRequest(run=run, task="x")).known
        assert not who.call("Heartbeat", pb.HeartbeatRequest(run=run, task="x")).wanted
        other = line(address, "b")
        assert "place 1 is taken" in other.call("Join", pb.JoinRequest(number=1, examples=1)).refused
        assert "no place 7" in other.call("Join", pb.JoinRequest(number=7, examples=1)).refused
        for channel in (who.channel, other.channel):
            channel.close()


@pytest.mark.parametrize("algorithm", ["scaffold", "fedprox(mu=0.1)", "ditto", "mime"])
def test_what_needs_single_steps_refuses_who_trains_its_own_way(algorithm: str, tmp_path: Path) -> None:
    with served(configured(tmp_path, SIZE, 1, 1, algorithm=algorithm), tmp_path / "run") as (address, _):
        with joined(address, [OwnWorker(Pull(0, SIZE))], tmp_path / "work") as ended:
            pass
        assert isinstance(ended[0], UsageError)
        assert "trains its own way" in str(ended[0])


def test_a_round_ends_though_a_client_never_comes_back(tmp_path: Path) -> None:
    """I4: one client vanishes after it was asked, another is too slow for the round's limit."""

    class Slow(Pull):
        def train(self, weights: Any, turn: Any) -> Any:
            time.sleep(6.0 if turn.round == 2 else 0.0)
            return super().train(weights, turn)

    pulls = [Pull(0, SIZE), Slow(1, SIZE), Pull(2, SIZE)]
    config = configured(tmp_path, SIZE, 3, 3)
    limits = Limits(round_seconds=4.0, silent_seconds=1.0)
    with served(config, tmp_path / "run", Serving(limits=limits, linger=4.0)) as (address, wait):
        gone = line(address, "c3")
        run = gone.call("Join", pb.JoinRequest(examples=10, number=3)).run
        with joined(address, [OwnWorker(pull) for pull in pulls[:2]], tmp_path / "work") as ended:
            assert gone.call("Poll", pb.PollRequest(run=run, wait_seconds=5)).task.round == 1
            gone.channel.close()
        assert all(isinstance(end, str) for end in ended)
        wait()
    records = load_result(tmp_path / "run").history
    assert [r.dropped for r in records] == [(2,), (1, 2), (2,)]
    assert records[1].reasons == ("not done within 4 s", "not heard of for 1 s")
    part = {1: [0, 1], 2: [0], 3: [0, 1]}
    final = load_result(tmp_path / "run").weights["w"]
    assert np.array_equal(final, expected(pulls, 3, lambda round: part[round]))


@pytest.mark.parametrize(
    "policy",
    ["over-selection(factor=1.5)", "k-of-n(k=2)", "deadline(seconds=5.0)", "fedbuff(buffer=2, concurrency=3)", "fedasync"],
)
def test_other_policies_on_real_time(policy: str, tmp_path: Path) -> None:
    pulls = [Pull(k, SIZE) for k in range(3)]
    config = configured(tmp_path, SIZE, 3, 6, policy=policy, cohort=2 if "over" in policy else 3)
    with served(config, tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work") as ended:
            pass
        assert all(isinstance(end, str) for end in ended)
        assert "6 rounds" in wait()
    result = load_result(tmp_path / "run")
    assert len(result.history) == 6
    middle = np.mean([pull.point for pull in pulls], 0)
    assert np.linalg.norm(result.weights["w"] - middle) < np.linalg.norm(middle) + 3


def test_a_client_that_fails_says_why_and_lives_on(tmp_path: Path) -> None:
    class Failing(Pull):
        def train(self, weights: Any, turn: Any) -> Any:
            if turn.round == 1:
                raise ValueError("the name of a patient")
            return super().train(weights, turn)

    pulls = [Failing(0, SIZE), Pull(1, SIZE)]
    with served(configured(tmp_path, SIZE, 2, 2), tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work"):
            pass
        wait()
    first, second = load_result(tmp_path / "run").history
    assert first.dropped == (0,)
    assert first.reasons == ("it says: ValueError",), "what an exception of the site's own code says stays there"
    assert second.dropped == ()


def test_its_operator_sees_how_it_is(tmp_path: Path) -> None:
    with served(configured(tmp_path, SIZE, 1, 3), tmp_path / "run", Serving(linger=10.0)) as (address, wait):
        port = json.loads((tmp_path / "run" / "serving.json").read_text())["http"]

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())

        assert get("/health") == "ok\n"
        assert json.loads(get("/status"))["phase"] == "gathering"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/../../etc/passwd")
        assert 'fedweave_calls_total{code="OK"' not in get("/metrics")
        with joined(address, [OwnWorker(Pull(0, SIZE))], tmp_path / "work"):
            pass
        wait()
    log = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["round"] for entry in log if entry["event"] == "round over"] == [1, 2, 3]
    assert not (tmp_path / "run" / "serving.json").exists()


def test_a_run_in_postgresql(tmp_path: Path, postgresql: str) -> None:
    pulls = [Pull(k, SIZE) for k in range(2)]
    with served(configured(tmp_path, SIZE, 2, 4), tmp_path / "run", Serving(url=postgresql)) as (address, wait):
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work") as ended:
            pass
        assert all(isinstance(end, str) for end in ended), ended
        wait()
    import safetensors.numpy

    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "run" / "final.safetensors")["w"], expected(pulls, 4))


def test_the_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    """A checker that never complains proves nothing."""
    import sqlite3

    pulls = [Pull(k, SIZE) for k in range(2)]
    with served(configured(tmp_path, SIZE, 2, 3), tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work"):
            pass
        wait()
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(2)}

    def checked() -> Any:
        return check(tmp_path / "run", folders, 3, {0: 10, 1: 10}, lambda who: expected(pulls, 3, who))

    assert checked()["acknowledged"] == 6
    for spoil, why in (
        ("update answers set \"update\" = 'ff' where client = 0 and round = 3", "not what the client sent"),
        ("delete from answers where client = 1 and round = 3", "has it not"),
        (
            "update rounds set cohort = cast(x'01' || substr(cohort, 2) as blob) where number = 2",
            "was told that it is in, and round 2",
        ),
        ("delete from rounds where number = 2", "a round is lost"),
    ):
        saved = (tmp_path / "run" / "ledger.sqlite3").read_bytes()
        ledger = sqlite3.connect(tmp_path / "run" / "ledger.sqlite3")
        ledger.execute(spoil)
        ledger.commit()
        ledger.close()
        with pytest.raises(AssertionError, match=why):
            checked()
        for path in (tmp_path / "run").glob("ledger.sqlite3*"):
            path.unlink()
        (tmp_path / "run" / "ledger.sqlite3").write_bytes(saved)
    assert checked()


def test_nothing_is_acknowledged_while_the_ledger_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a database that is down: the coordinator waits, says so, and goes on by itself."""
    append, checkpoint = EventLog.append, RunStore.checkpoint
    broken = threading.Event()

    def failing(self: Any, *given: Any) -> None:
        if broken.is_set():
            raise StoreError("The ledger cannot be written: disk full.")
        append(self, *given)

    def failing_too(self: Any, *given: Any) -> None:
        if broken.is_set():
            raise StoreError("Cannot write: disk full.")
        checkpoint(self, *given)

    monkeypatch.setattr(EventLog, "append", failing)
    monkeypatch.setattr(RunStore, "checkpoint", failing_too)
    monkeypatch.setattr(core, "PAUSE", 0.05)
    pulls = [Pull(0, SIZE)]
    with served(configured(tmp_path, SIZE, 1, 200), tmp_path / "run") as (address, wait):
        port = json.loads((tmp_path / "run" / "serving.json").read_text())["http"]

        def health() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        with joined(address, [OwnWorker(pulls[0])], tmp_path / "work"):
            while len(pulls[0].trained) < 3:
                time.sleep(0.01)
            broken.set()
            while health() == 200:
                time.sleep(0.01)
            before = len(pulls[0].trained)
            for _ in range(20):
                time.sleep(0.01)
                assert len(pulls[0].trained) <= before + 1
            broken.clear()
        wait()
        assert pulls[0].trained == list(range(1, 201))
    examples = {0: pulls[0].examples}
    check(tmp_path / "run", {0: tmp_path / "work" / "c1"}, 200, examples, lambda who: expected(pulls, 200, who))


def test_postgresql_connections_killed_while_it_commits(tmp_path: Path, postgresql: str) -> None:
    import psycopg
    import safetensors.numpy

    pulls = [Pull(k, SIZE) for k in range(3)]
    stop, killed = threading.Event(), []

    def kill() -> None:
        others = "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()"
        with psycopg.connect(postgresql, autocommit=True) as connection:
            while not stop.wait(0.02):
                killed.append(connection.execute(others).fetchone()[0])  # type: ignore[index]

    with served(configured(tmp_path, SIZE, 3, 40), tmp_path / "run", Serving(url=postgresql)) as (address, wait):
        thread = threading.Thread(target=kill, daemon=True)
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work") as ended:
            while len(pulls[0].trained) < 2:
                time.sleep(0.01)
            thread.start()
            while len(pulls[0].trained) < 35 and len(killed) < 200:
                time.sleep(0.01)
            stop.set()
            thread.join()
        assert all(isinstance(end, str) for end in ended), ended
        wait()
    assert sum(killed) > 5
    assert all(pull.trained == list(range(1, 41)) for pull in pulls)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "run" / "final.safetensors")["w"], expected(pulls, 40))


def test_the_time_that_is_given(tmp_path: Path) -> None:
    with served(configured(tmp_path, SIZE, 1, 100_000, max_seconds=1.0), tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(Pull(0, SIZE))], tmp_path / "work") as ended:
            pass
        assert "time given is over" in ended[0]
        wait()
    result = load_result(tmp_path / "run")
    assert result.status == "time"
    assert len(result.history) < 100_000


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"algorithm": "fedma"}, "fedma changes each client's training by how the model's layers"),
        ({"algorithm": "scaffold", "population": "population(speed=lognormal(median=100, sigma=1))"}, "population is"),
        ({"attack": "ipm(epsilon=0.1)", "byzantine": 1}, "attack is"),
        ({"policy": "deadline(seconds=1, late='keep')"}, "late is 'keep'"),
    ],
)
def test_what_only_a_simulation_has_is_refused_and_says_what_to_do(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, served(configured(tmp_path, SIZE, 1, 1, **more), tmp_path / "run"):
        pass
    assert why in str(caught.value)
    assert "simulate: fedweave run" in str(caught.value) or "use late='drop'" in str(caught.value)


def test_what_nobody_measures_cannot_be_reached(tmp_path: Path) -> None:
    config = configured(tmp_path, SIZE, 1, 1, target="accuracy=0.9", evaluate_every=1)
    with pytest.raises(UsageError, match="--evaluator"), served(config, tmp_path / "run"):
        pass


def test_a_run_that_is_over_tells_who_comes_back(tmp_path: Path) -> None:
    pulls = [Pull(0, SIZE)]
    with served(configured(tmp_path, SIZE, 1, 2), tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(pulls[0])], tmp_path / "work"):
            pass
        wait()
    before = (tmp_path / "run" / "final.safetensors").read_bytes()
    with served(None, tmp_path / "run") as (address, wait):
        with joined(address, [OwnWorker(pulls[0])], tmp_path / "work") as ended:
            pass
        assert ended == ["All 2 rounds are done."]
        wait()
    assert pulls[0].trained == [1, 2]
    assert (tmp_path / "run" / "final.safetensors").read_bytes() == before


def test_old_verdicts_are_forgotten_and_the_last_are_kept(tmp_path: Path) -> None:
    """The ledger stays flat; who asks again for its last verdict hears it, and for an older one that it is too late."""
    import sqlite3

    config, run = configured(tmp_path, SIZE, 2, 40), tmp_path / "run"
    with served(config, run, Serving(linger=5.0)) as (address, _):
        who, other = line(address, "a"), line(address, "b")
        name = who.call("Join", pb.JoinRequest(examples=10)).run
        other.call("Join", pb.JoinRequest(examples=10))
        good, rows = {"delta": np.ones(SIZE, np.float32), "weight": 10}, []
        before: list[Any] = []

        def commit(stub: Any, task: Any) -> Any:
            content = encode(good, REPORT)
            blob = Blob.of(content)
            sent = pb.Blob(id=blob.id, size=blob.size, chunks=blob.chunks, inline=content)
            return stub.call("Commit", pb.CommitRequest(run=name, task=task.id, round=task.round, update=sent))

        for round in range(1, 40):
            for stub in (who, other):
                task = stub.call("Poll", pb.PollRequest(run=name, wait_seconds=10)).task
                assert task.round == round
                assert commit(stub, task).verdict == pb.CommitReply.ACCEPTED
                assert commit(stub, task).verdict == pb.CommitReply.ACCEPTED, "its last verdict, whatever the others do"
            before.append(task)
            ledger = sqlite3.connect(f"file:{run / 'ledger.sqlite3'}?mode=ro", uri=True)
            rows.append(ledger.execute("select count(*) from answers").fetchone()[0])
            ledger.close()
        assert max(rows) <= 4
        assert commit(other, before[-1]).verdict == pb.CommitReply.ACCEPTED
        old = commit(other, before[0])
        assert (old.verdict, old.reason[:36]) == (pb.CommitReply.LATE, "this client has answered in round 39")
        for stub in (who, other):
            stub.channel.close()


def test_who_is_away_is_not_asked(tmp_path: Path) -> None:
    """sampling="available": a client that has not called for --silent-seconds is not drawn, and is again when it is back."""
    config = configured(tmp_path, SIZE, 3, 100_000, cohort=2, sampling="available", seed=5)
    run, limits = tmp_path / "run", Limits(silent_seconds=2.0)

    def cohorts() -> list[tuple[int, ...]]:
        path = run / "rounds.jsonl"
        return [tuple(json.loads(text)["cohort"]) for text in path.read_text().splitlines()] if path.exists() else []

    def until(met: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not met():
            assert time.monotonic() < end
            time.sleep(0.02)

    class Slow(Pull):
        def train(self, weights: Any, turn: Any) -> Any:
            time.sleep(0.01)
            return super().train(weights, turn)

    pulls = [Slow(k, SIZE) for k in range(3)]
    with served(config, run, Serving(limits=limits, linger=0.0)) as (address, _), contextlib.ExitStack() as stack:
        stops = []
        for k in range(3):
            stop = threading.Event()
            session = Session(line(address, f"c{k + 1}", stop), OwnWorker(pulls[k]), tmp_path / f"c{k + 1}", k + 1)
            thread = threading.Thread(target=lambda s=session: _quietly(s), daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(stop.set)
            stops.append(stop)
        until(lambda: len({client for cohort in cohorts() for client in cohort}) == 3)
        stops[2].set()
        until(lambda: len(cohorts()) > 30 and all(2 not in cohort for cohort in cohorts()[-15:]))
        away = len(cohorts())
        session = Session(line(address, "c3", stops[0]), OwnWorker(pulls[2]), tmp_path / "c3", 3)
        thread = threading.Thread(target=lambda: _quietly(session), daemon=True)
        thread.start()
        stack.callback(thread.join, 10)
        until(lambda: any(2 in cohort for cohort in cohorts()[away:]))


@pytest.mark.parametrize("rounds", [0, 3])
def test_who_was_away_is_in_the_ledger(rounds: int, tmp_path: Path) -> None:
    """A coordinator that was started again, with or without a checkpoint since, has drawn and draws the same clients."""
    config = configured(tmp_path, SIZE, 6, 100, cohort=3, sampling="available", seed=3)
    start, away = Path(str(config.initial)), frozenset({1, 4})

    def opened(store: RunStore) -> Core:
        made = Core(Run(store, Limits()), lambda change: None, offline=lambda: away)
        made.start()
        return made

    def tasks(of: Core) -> list[tuple[int, int]]:
        assert of.desk is not None
        return sorted((task.round, task.client) for task in of.desk.tasks.values())

    first = opened(begin(config, tmp_path / "run", start))
    for number in range(6):
        first.submit(Join(f"c{number}", number, 10, True, False)).result(10)
    first.submit(Tick()).result(10)
    for _ in range(rounds + 1):
        for task in list(first.desk.tasks.values()) if first.desk is not None else []:
            content = encode({"delta": np.ones(SIZE, np.float32), "weight": 10}, REPORT)
            said = Said(read(content), Report(10, 1, 0.5))
            reply = first.submit(Offer(task.id, task.client, Blob.of(content).id.hex(), content, said)).result(10)
            assert reply.verdict == "accepted"
    drawn = tasks(first)
    assert drawn
    assert {round for round, _ in drawn} == {rounds + 2}
    assert away.isdisjoint(client for _, client in drawn)
    first.close()
    again = opened(RunStore.open(tmp_path / "run"))
    assert again.run.offline == away
    assert tasks(again) == drawn
    again.close()


def test_a_caller_that_is_cut_off_while_it_waits_ends_nothing(tmp_path: Path) -> None:
    """A connection that breaks, or a deadline, between a request and its answer."""
    config = configured(tmp_path, SIZE, 2, 1)
    owner = Core(Run(begin(config, tmp_path / "run", Path(str(config.initial))), Limits()), lambda change: None)
    owner.start()
    waits = owner.submit(Join("a", None, 10, True, False))
    waits.cancel()
    assert not waits.cancelled()
    assert owner.submit(Join("b", None, 10, True, False)).result(10).number == 1
    assert [member.name for member in owner.run.members] == ["a", "b"]
    assert owner.failed is None
    owner.close()
