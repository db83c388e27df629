# SPDX-License-Identifier: Apache-2.0
"""Wall clocks that are an hour wrong, and that jump by hours while everything runs: deadlines do not move, nobody is taken for
silent, no request for a replay; tokens live by the wall clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from checking import check
from deploying import Pull, configured, expected
from test_faults import port, spawn

TIMES = max(int(os.environ.get("FEDWEAVE_KILLS", "20")) // 20, 1)
"""How often the coordinator is killed."""


def said(words: list[str], log: Path) -> tuple[int, str]:
    """A command's exit code, and all that it printed."""
    log.unlink(missing_ok=True)
    code = spawn(words, log).wait(300)
    return code, " ".join(log.read_text().split())


@pytest.mark.parametrize("policy", ["synchronous", pytest.param("deadline(seconds=100)", marks=pytest.mark.slow)])
def test_clocks_that_jump_by_an_hour(policy: str, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's and the clients', certified; the coordinator and a client are killed and come back meanwhile."""
    monkeypatch.setenv("FEDWEAVE_CLOCK", "jumps")
    size, rounds, run = 30, 12 * TIMES, tmp_path / "run"
    configured(tmp_path, size, 2, rounds, policy=policy).write(tmp_path / "config.toml")
    for k in (1, 2):
        site.client(f"c{k}")
    site.authority.close()
    address = f"127.0.0.1:{port()}"
    serve = [
        "serve",
        str(tmp_path / "config.toml"),
        "--out",
        str(run),
        "--listen",
        address,
        "--pki",
        str(site.folder / "authority"),
    ]
    serve += ["--round-seconds", "300", "--silent-seconds", "100", "--linger", "20"]

    def join(k: int) -> subprocess.Popen[bytes]:
        words = ["join", "--server", address, "--workdir", str(tmp_path / f"c{k}"), "--number", str(k), "--quiet"]
        return spawn([*words, "--data", f"faulty:load(number={k - 1}, size={size})"], tmp_path / f"c{k}.log")

    def done() -> int:
        path = run / "rounds.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    processes = {"server": spawn(serve, tmp_path / "server.log"), 1: join(1), 2: join(2)}
    end = time.monotonic() + 300 * TIMES
    try:
        for kill in range(TIMES):
            while done() < (kill + 1) * rounds // (TIMES + 1):
                assert time.monotonic() < end, (tmp_path / "server.log").read_text()[-3000:]
                assert all(process.poll() is None for process in processes.values()), "a process has ended"
                time.sleep(0.01)
            for who in ("server", 1 + kill % 2):
                processes[who].send_signal(signal.SIGKILL)
                processes[who].wait()
                processes[who] = spawn(serve, tmp_path / "server.log") if who == "server" else join(int(who))
        for process in processes.values():
            assert process.wait(max(end - time.monotonic(), 1)) == 0, (tmp_path / "server.log").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    pulls = [Pull(k, size, 10 + k) for k in range(2)]
    folders = {k: tmp_path / f"c{k + 1}" for k in range(2)}
    check(run, folders, rounds, {0: 10, 1: 11}, lambda who: expected(pulls, rounds, who))
    records = [json.loads(text) for text in (run / "rounds.jsonl").read_text().splitlines()]
    assert all(record["dropped"] == [] for record in records), "somebody was given up because a clock jumped"
    assert all(0 <= record["seconds"] < 600 for record in records)
    print(f"clocks jumped by hours through {rounds} rounds, {TIMES} kills, policy {policy}: 0 failures")


def test_a_token_lives_by_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour's token, on a clock that is an hour ahead, and on one that is an hour behind."""
    pki, log = str(tmp_path / "pki"), tmp_path / "log"
    assert said(["pki", "init", "--pki", pki], log)[0] == 0
    for client in ("late", "early"):
        made = ["pki", "token", client, "--pki", pki, "--ttl", "1800", "--out", str(tmp_path / f"{client}.token")]
        assert said(made, log)[0] == 0

    def enrol(client: str) -> tuple[int, str]:
        token = str(tmp_path / f"{client}.token")
        return said(["pki", "enrol", "--workdir", str(tmp_path / client), "--token-file", token, "--pki", pki], log)

    monkeypatch.setenv("FEDWEAVE_CLOCK", "3600")
    code, text = enrol("late")
    assert code == 2
    assert "expired" in text
    monkeypatch.setenv("FEDWEAVE_CLOCK", "-3600")
    assert enrol("early")[0] == 0
    monkeypatch.setenv("FEDWEAVE_CLOCK", "0")
    assert enrol("late")[0] == 0
