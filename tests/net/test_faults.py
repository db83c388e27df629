# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every durable step, and at any time: nothing that was acknowledged is lost or counted twice, and the model is the
one that would have come without. Checked by ``checking``, which shares no code with what it checks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import check
from deploying import Pull, configured, expected, joined

from fedweave.net.failpoints import POINTS
from fedweave.net.own import OwnWorker

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVER = [point for point in POINTS if not point.startswith("client.")]
CLIENT = [point for point in POINTS if point.startswith("client.")]


def spawn(words: Sequence[str], log: Path, point: str = "-", count: int = 1) -> subprocess.Popen[bytes]:
    """The command line in a process that dies at a point."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{HERE}", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        command = [sys.executable, str(HERE / "faulty.py"), point, str(count), *words]
        return subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=HERE)


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Trial:
    """A run whose processes are killed.

    Args:
        folder: for all of it.
        size: values of the model; beyond 16,000 it travels in chunks and lies in files.
    """

    def __init__(self, folder: Path, size: int, clients: int = 3, rounds: int = 12, **more: Any) -> None:
        self.folder, self.size, self.rounds = folder, size, rounds
        self.pulls = [Pull(k, size, 10 + k) for k in range(clients)]
        config = configured(folder, size, clients, rounds, **more)
        self.toml, self.run = folder / "config.toml", folder / "run"
        config.write(self.toml)
        self.address = f"127.0.0.1:{port()}"
        self.log = folder / "coordinator.log"
        self.kills = 0

    def serve(self, point: str = "-", count: int = 1) -> subprocess.Popen[bytes]:
        words = ["serve", str(self.toml), "--out", str(self.run), "--listen", self.address, "--insecure", "--linger", "20"]
        return spawn(words, self.log, point, count)

    def through(self, deaths: Sequence[tuple[str, int] | float], patience: float = 120.0) -> None:
        """Serve the run, dying so, one death after the other; then to its end.

        Args:
            deaths: a point and how often it is reached, or seconds: after it began to serve, below 0 after it was started.
            patience: seconds without a new round after which it hangs.
        """
        for death in [*deaths, ("-", 1)]:
            process = self.serve(*death) if isinstance(death, tuple) else self.serve()
            if isinstance(death, float):
                self._shot(process, death, patience)
            else:
                self._awaited(process, patience)
            if process.returncode == 0:
                return
            assert process.returncode == -signal.SIGKILL, self.log.read_text()[-3000:]
            self.kills += 1
        raise AssertionError("the run has not ended")

    def _shot(self, process: subprocess.Popen[bytes], seconds: float, patience: float) -> None:
        """Kill a process at a time, however slow the machine is."""
        end = time.monotonic() + patience
        while seconds >= 0 and process.poll() is None and not self._serves(process.pid):
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.005)
        try:
            process.wait(abs(seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _serves(self, pid: int) -> bool:
        try:
            return bool(json.loads((self.run / "serving.json").read_text())["pid"] == pid)
        except (OSError, ValueError):
            return False

    def _awaited(self, process: subprocess.Popen[bytes], patience: float) -> None:
        """Wait for a process as long as there are new rounds."""
        lines, seen, end = self.run / "rounds.jsonl", -1, time.monotonic() + patience
        while process.poll() is None:
            if (now := lines.stat().st_size if lines.exists() else 0) != seen:
                seen, end = now, time.monotonic() + patience
            if time.monotonic() > end:
                process.kill()
                process.wait()
                raise AssertionError("it hangs: " + self.log.read_text()[-3000:])
            time.sleep(0.02)

    def check(self, folders: dict[int, Path]) -> dict[str, int]:
        examples = {k: pull.examples for k, pull in enumerate(self.pulls)}
        return check(self.run, folders, self.rounds, examples, lambda who: expected(self.pulls, self.rounds, who))

    def with_threads(self, deaths: Sequence[tuple[str, int] | float], patience: float = 120.0) -> dict[str, int]:
        """The clients as threads of this process, which live on."""
        workers = [OwnWorker(pull) for pull in self.pulls]
        with joined(self.address, workers, self.folder / "work") as ended:
            self.through(deaths, patience)
        assert all(isinstance(end, str) for end in ended), ended
        return self.check({k: self.folder / "work" / f"c{k + 1}" for k in range(len(self.pulls))})


@pytest.mark.parametrize("size", [pytest.param(30, marks=pytest.mark.slow), 40_000])
def test_coordinator_killed_at_every_durable_step(size: int, tmp_path: Path) -> None:
    trial = Trial(tmp_path, size)
    small = {"update.received", "update.renamed"}
    deaths = [(point, 2) for point in SERVER if point != "run.finished" and not (size == 30 and point in small)]
    found = trial.with_threads([*deaths, ("run.finished", 1)])
    assert trial.kills == len(deaths) + 1
    assert found["acknowledged"] == 3 * trial.rounds
    # What was trained before a death was not trained again.
    assert all(sorted(set(pull.trained)) == sorted(pull.trained) for pull in trial.pulls)


def test_clients_killed_at_every_durable_step(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 40_000, clients=2, rounds=10)
    server = trial.serve()
    folders = {k: tmp_path / f"c{k + 1}" for k in range(2)}

    def live(k: int) -> None:
        words = ["join", "--server", trial.address, "--insecure", "--number", str(k + 1), "--name", f"c{k + 1}", "--quiet"]
        words += ["--workdir", str(folders[k]), "--data", f"faulty:load(number={k}, size={trial.size})"]
        for point in [*(CLIENT if k == 0 else []), "-"]:
            process = spawn(words, tmp_path / f"c{k + 1}.log", point, 1)
            code = process.wait(120)
            assert code == (0 if point == "-" else -signal.SIGKILL), (point, (tmp_path / f"c{k + 1}.log").read_text()[-3000:])

    failed: list[BaseException] = []

    def guarded(k: int) -> None:
        try:
            live(k)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(k,), daemon=True) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    server.kill() if failed else server.wait(30)
    assert not failed, failed[0]
    trial.check(folders)


def test_almost_a_third_of_the_clients_is_killed_in_each_round(tmp_path: Path) -> None:
    """I4: every round ends all the same, with everybody in it, as nobody is away for as long as is waited."""
    kills = int(os.environ.get("FEDWEAVE_KILLS", "0"))
    clients, rounds = (10, kills // 4) if kills else (4, 3)
    draw = np.random.default_rng(int(os.environ.get("FEDWEAVE_SEED", "0")))
    trial = Trial(tmp_path, 40_000, clients=clients, rounds=rounds)
    server, folders = trial.serve(), {k: tmp_path / f"c{k + 1}" for k in range(clients)}

    def client(k: int) -> subprocess.Popen[bytes]:
        words = ["join", "--server", trial.address, "--insecure", "--number", str(k + 1), "--name", f"c{k + 1}", "--quiet"]
        words += ["--workdir", str(folders[k]), "--data", f"faulty:load(number={k}, size={trial.size})"]
        return spawn(words, tmp_path / f"c{k + 1}.log")

    lines, killed, done, struck = trial.run / "rounds.jsonl", 0, -1, set[int]()
    processes = {k: client(k) for k in range(clients)}
    try:
        end = time.monotonic() + 300
        while server.poll() is None:
            assert time.monotonic() < end, trial.log.read_text()[-3000:]
            time.sleep(0.01)
            now = lines.read_text().count("\n") if lines.exists() else -1
            if not done < now < rounds:
                continue
            done, end = now, time.monotonic() + 300
            time.sleep(float(draw.uniform(0, 0.2)))
            struck = set(draw.choice(clients, -(-clients * 3 // 10), replace=False).tolist())
            for k in struck:
                processes[k].kill()
                killed += processes[k].wait() == -signal.SIGKILL
                processes[k] = client(k)
        assert server.returncode == 0, trial.log.read_text()[-3000:]
        for k in set(range(clients)) - struck:
            assert processes[k].wait(60) == 0, (tmp_path / f"c{k + 1}.log").read_text()[-3000:]
    finally:
        for process in [server, *processes.values()]:  # who came back when it was over waits for ever
            process.kill()
            process.wait()
    assert trial.check(folders)["acknowledged"] <= clients * rounds
    assert killed >= rounds
    records = [json.loads(text) for text in lines.read_text().splitlines()]
    assert all(record["dropped"] == [] for record in records)
    print(f"{killed} kills of clients, 30 % of {clients} in each of {rounds} rounds: 0 failures")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_client_that_is_told_to_end_does_though_all_goes_well(number: signal.Signals, tmp_path: Path) -> None:
    """It waits for others to join; the same command goes on."""
    trial = Trial(tmp_path, 30, clients=2, rounds=2)
    server, processes = trial.serve(), []

    def join(k: int) -> subprocess.Popen[bytes]:
        words = [
            "join",
            "--server",
            trial.address,
            "--insecure",
            "--workdir",
            str(tmp_path / f"c{k + 1}"),
            "--number",
            str(k + 1),
        ]
        processes.append(spawn([*words, "--data", f"faulty:load(number={k}, size=30)"], tmp_path / f"c{k + 1}.log"))
        return processes[-1]

    try:
        first, log = join(0), tmp_path / "c1.log"
        end = time.monotonic() + 300
        while "joined" not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        first.send_signal(number)
        assert first.wait(30) == 130
        assert "the same command goes on" in log.read_text()
        again = [join(0), join(1)]
        assert [process.wait(300) for process in again] == [0, 0]
        assert server.wait(60) == 0
    finally:
        for process in [server, *processes]:
            process.kill()
            process.wait()
    trial.check({k: tmp_path / f"c{k + 1}" for k in range(2)})


def test_a_client_that_cannot_repeat_itself_is_still_counted_once(tmp_path: Path) -> None:
    """Its update is made once: after a kill the same bytes are sent, not new ones."""
    trial = Trial(tmp_path, 30, clients=1, rounds=4)
    server = trial.serve()
    words = ["join", "--server", trial.address, "--insecure", "--workdir", str(tmp_path / "c1"), "--quiet"]
    words += ["--data", "faulty:torn(size=30)"]
    for point in ("client.updated", "client.committed", "client.settled", "-"):
        assert spawn(words, tmp_path / "c1.log", point, 1).wait(60) == (0 if point == "-" else -signal.SIGKILL)
    assert server.wait(30) == 0
    check(trial.run, {0: tmp_path / "c1"}, 4, {0: 10})


def test_every_point_is_reached() -> None:
    """No failpoint is left behind that no code reaches."""
    text = "".join(path.read_text() for path in (ROOT / "src" / "fedweave" / "net").glob("*.py"))
    assert all(f'reached("{point}")' in text for point in POINTS)
    assert np.all([text.count(f'reached("{point}")') == 1 for point in POINTS])


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    """``make test-faults``: FEDWEAVE_KILLS at random times, and a tenth as many at each point."""
    kills = int(os.environ.get("FEDWEAVE_KILLS", "20"))
    draw = np.random.default_rng(int(os.environ.get("FEDWEAVE_SEED", "0")))
    done = 0
    while done < kills:
        size = int(draw.choice([30, 40_000]))
        trial = Trial(tmp_path / f"random-{done}", size, rounds=60)
        # While it starts and replays, and four times while it serves.
        times = [float(t) for t in [-draw.uniform(0.2, 2.0), *draw.uniform(0.0, 1.0, 4)]]
        trial.with_threads(times, 300.0)
        done += max(trial.kills, 1)
    each = max(kills // 10, 1)
    for point in SERVER:
        at = 0
        while at < each:
            trial = Trial(tmp_path / f"{point}-{at}", 40_000, rounds=40)
            count = 1 if point == "run.finished" else 0
            deaths = [(point, count or int(draw.integers(1, 6))) for _ in range(1 if count else min(5, each - at))]
            trial.with_threads(deaths, 300.0)
            at += max(trial.kills, 1)
            done += trial.kills
    print(f"{done} kills of the coordinator, 0 failures: the rate is below {3 / done:.4f} with 95% confidence")
