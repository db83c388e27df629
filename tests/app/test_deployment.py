# SPDX-License-Identifier: Apache-2.0
"""Deployments from the command line, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedweave.app import told
from fedweave.app.cli import app
from fedweave.history import ClientDone, Round, RoundStarted, RunEnded, RunStarted, Target
from fedweave.simulation import load_result

ROOT = Path(__file__).parents[2]
FLAGS = ["--data", "digits", "--clients", "2", "--cohort", "2", "--rounds", "6", "--model", "logistic", "--epochs", "1"]


def fedweave(*words: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests' / 'net'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedweave.app.cli", *words]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def bits(folder: Path) -> bytes:
    return (folder / "final.safetensors").read_bytes()


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started: number -> command line."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and f"\nPPid:\t{pid}\n" in (path / "status").read_text():
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def test_up_ends_in_the_bits_of_run_though_its_processes_are_killed(tmp_path: Path) -> None:
    flags = [*FLAGS, "--algorithm", "scaffold", "--engine", "eager", "--quiet"]
    run("run", *flags, "--out", str(tmp_path / "simulated"))
    up = fedweave("up", *flags, "--rounds", "6", "--out", "real", cwd=tmp_path)
    killed: list[str] = []

    def kill() -> None:
        """A client once there are rounds, and then the coordinator."""
        lines = tmp_path / "real" / "rounds.jsonl"
        for victim in ("--number 1", " serve "):
            while up.poll() is None and not (lines.exists() and lines.read_text().count("\n") > len(killed)):
                time.sleep(0.01)
            for pid, words in children(up.pid).items():
                if victim in words:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(victim)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    out, _ = up.communicate(timeout=240)
    thread.join(10)
    assert up.returncode == 0, out
    assert killed
    assert bits(tmp_path / "real") == bits(tmp_path / "simulated")
    assert (tmp_path / "real" / "report.html").exists()
    assert "All 6 rounds are done" in run("status", str(tmp_path / "real"))


def test_up_goes_on_with_what_was_ended(tmp_path: Path) -> None:
    flags = [*FLAGS[:-6], "--rounds", "150", "--model", "logistic", "--epochs", "1", "--engine", "eager", "--quiet"]
    run("run", *flags, "--out", str(tmp_path / "simulated"))
    up, lines = fedweave("up", *flags, "--out", "real", cwd=tmp_path), tmp_path / "real" / "rounds.jsonl"
    while up.poll() is None and not (lines.exists() and lines.read_text().count("\n") > 2):
        time.sleep(0.01)
    up.send_signal(signal.SIGINT)
    out, _ = up.communicate(timeout=240)
    stopped = load_result(tmp_path / "real")
    assert stopped.status == "interrupted", out
    assert 0 < len(stopped.history) < 150
    # Other flags are another run; the same, or none, are this one.
    real = str(tmp_path / "real")
    refused = CliRunner().invoke(app, ["up", *flags, "--lr", "0.5", "--out", real])
    assert refused.exit_code == 2
    assert "lr was" in " ".join(refused.output.split()), refused.output
    assert "is 0.5 now" in " ".join(refused.output.split())
    assert "fedweave up --out" in CliRunner().invoke(app, ["resume", real]).output
    again = fedweave("up", "--quiet", "--out", "real", cwd=tmp_path)
    out, _ = again.communicate(timeout=240)
    assert again.returncode == 0, out
    assert bits(tmp_path / "real") == bits(tmp_path / "simulated")
    # One that is over has nothing to go on with, and says how it ended.
    assert "150 rounds are done" in run("up", *flags, "--out", real)
    simulated = CliRunner().invoke(app, ["up", *flags, "--out", str(tmp_path / "simulated")])
    assert "`fedweave up` did not begin" in " ".join(simulated.output.split())


REFUSED = {
    "fedma": (["--algorithm", "fedma"], "model's layers"),
    "population": (["--population", "population(speed=lognormal(median=100, sigma=1))"], "only a simulation has"),
    "attack": (["--attack", "ipm(epsilon=0.1)", "--byzantine", "1"], "only a simulation has"),
    "late": (["--policy", "deadline(seconds=1, late='keep')"], "use late='drop'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_deployed_is_refused_and_says_why(kind: str, tmp_path: Path) -> None:
    flags, why = REFUSED[kind]
    done = CliRunner().invoke(app, ["up", *FLAGS, *flags, "--out", str(tmp_path / "x"), "--quiet"])
    assert done.exit_code == 2, done.output
    assert why in " ".join(done.output.split())
    assert not (tmp_path / "x").exists(), "nothing is left behind"


def test_a_served_run_is_looked_at_stopped_and_gone_on_with(tmp_path: Path) -> None:
    from deploying import configured

    configured(tmp_path, 5, 1, 3000).write(tmp_path / "config.toml")
    serve = ["serve", "config.toml", "--out", "run", "--listen", "127.0.0.1:0", "--insecure", "--linger", "5"]
    started = [fedweave(*serve, cwd=tmp_path)]
    coordinator, folder = started[0], tmp_path / "run"
    try:
        end = time.monotonic() + 60
        while not (folder / "serving.json").exists():
            assert time.monotonic() < end
            assert coordinator.poll() is None, coordinator.communicate()
            time.sleep(0.05)
        assert "gathering" in run("status", str(folder))
        address = json.loads(run("status", str(folder), "--json"))["address"]
        join = ["join", "--server", address, "--insecure", "--workdir", "site", "--data", "faulty:load(number=0, size=5)", "-q"]
        started.append(client := fedweave(*join, cwd=tmp_path))
        while json.loads(run("status", str(folder), "--json"))["round"] < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "round over" in run("logs", str(folder))
        assert "after the round" in run("stop", str(folder))
        said, _ = coordinator.communicate(timeout=30)
        assert coordinator.returncode == 0
        assert said.count("site has joined: 1 of 1 clients.") == 1
        assert "round 1/3000" in said
        assert client.wait(30) == 0
        stopped = load_result(folder)
        assert stopped.status == "interrupted"
        # Gone on with, by the same client, to a later end.
        words = ["serve", "--out", "run", "--listen", address, "--insecure", "--linger", "5"]
        started.append(again := fedweave(*words, cwd=tmp_path))
        started.append(client := fedweave(*join, cwd=tmp_path))
        while not (folder / "serving.json").exists() or len(load_result(folder).history) <= len(stopped.history):
            assert again.poll() is None, again.communicate()
            time.sleep(0.1)
        run("stop", str(folder))
        said, _ = again.communicate(timeout=30)
        assert again.returncode == 0
        assert f"resumed after round {len(stopped.history)}" in said
        assert "has joined" not in said
        client.wait(30)
        history = load_result(folder).history
        assert [r.number for r in history] == list(range(1, len(history) + 1))
        assert [r.model_hash for r in history[: len(stopped.history)]] == [r.model_hash for r in stopped.history]
        assert "not served" in run("status", str(folder))
    finally:
        for process in started:
            process.kill()
            process.communicate()


JOIN = ["join", "--insecure", "--workdir", "{}", "--server"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["serve", "--insecure", "--out", "{}/new"], "holds no run"),
        (["serve", "--insecure", "--listen", "0.0.0.0:0", "--out", "{}/new"], "this machine"),
        (
            ["join", "--server", "example.org:1", "--insecure", "--data", "faulty:torn(size=1)", "--workdir", "{}"],
            "this machine",
        ),
        ([*JOIN, "127.0.0.1:1", "--data", "nothing"], "package.module:load"),
        ([*JOIN, "127.0.0.1:1", "--data", "no.such:load"], "cannot be imported"),
        ([*JOIN, "127.0.0.1:1", "--data", "os:getcwd"], "fedweave.Client"),
        (
            [*JOIN, "127.0.0.1:1", "--data", "os:getenv(key=open())"],
            "write it like",
        ),
        (["stop", "{}"], "not the folder of a run"),
        (["prepare", "{}/none.toml", "--out", "{}"], "no configuration file"),
    ],
)
def test_mistakes(words: list[str], why: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [word.replace("{}", str(tmp_path)) for word in words])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())


@pytest.mark.parametrize(
    "event",
    [
        RunStarted("2nn", 10, "fedavg", "digits", 4, 2, 5, "network", Target("accuracy", 0.9), "x", 0),
        RoundStarted(3, (1, 2)),
        ClientDone(3, 1, 1),
        Round(1, {"loss": 0.25}, (0, 3), 1, 2, 0.5, "ab", refused=((1, "nan"),), dropped=(2,), reasons=("late",)),
        RunEnded("rounds", "All done."),
    ],
)
def test_what_happens_comes_through_a_pipe(event: Any) -> None:
    assert told.parse(told.spell(event)) == event
    assert told.parse("something else") is None
