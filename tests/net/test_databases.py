# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL whose processes are killed in the middle of what they do: it recovers from its own log, and the run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from deploying import Pull, configured, expected, joined, served

from fedweave.net import core
from fedweave.net.own import OwnWorker
from fedweave.net.serving import Serving

TIMES = max(int(os.environ.get("FEDWEAVE_KILLS", "0")) // 10, 2)
"""How often PostgreSQL dies."""


@pytest.mark.slow
def test_postgresql_killed_while_it_commits(tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the process that serves the coordinator: PostgreSQL ends all the others too, and replays its log."""
    import psycopg
    import safetensors.numpy

    monkeypatch.setattr(core, "PAUSE", 0.05)
    rounds, killed = 15 * TIMES, 0
    pulls = [Pull(k, 30) for k in range(3)]
    draw = np.random.default_rng(int(os.environ.get("FEDWEAVE_SEED", "0")))
    others = "select pid from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'"
    with served(configured(tmp_path, 30, 3, rounds), tmp_path / "run", Serving(url=postgresql)) as (address, wait):
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work") as ended:
            for kill in range(TIMES):
                end = time.monotonic() + 120
                while len(pulls[0].trained) < 2 + kill * rounds // TIMES:
                    assert time.monotonic() < end
                    time.sleep(0.002)
                time.sleep(float(draw.uniform(0, 0.02)))
                with contextlib.suppress(psycopg.OperationalError), psycopg.connect(postgresql, autocommit=True) as connection:
                    for (pid,) in connection.execute(others).fetchall():
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
        assert all(isinstance(one, str) for one in ended), ended
        wait()
    assert killed >= TIMES // 2
    assert all(pull.trained == list(range(1, rounds + 1)) for pull in pulls)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "run" / "final.safetensors")["w"], expected(pulls, rounds))
    print(f"PostgreSQL died {killed} times in {rounds} rounds: 0 failures")
