# SPDX-License-Identifier: Apache-2.0
"""A network that cuts, flips, delays and partitions: every message is whole or made again, and the model is the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import check
from deploying import Pull, configured, expected
from proxying import proxied
from test_certified import coordinator, line, weights

from fedweave.net.client import Session
from fedweave.net.own import OwnWorker


@pytest.mark.parametrize(("size", "mean", "seed"), [(30, 6_000, 0), (400_000, 2_000_000, 1)])
def test_faults_on_the_way_change_nothing(size: int, mean: float, seed: int, site: Any, tmp_path: Path) -> None:
    rounds = 20 if size < 1000 else 5
    pulls = [Pull(k, size) for k in range(3)]
    ended: dict[int, Any] = {}
    config = configured(tmp_path, size, 3, rounds)
    with coordinator(site, config, tmp_path / "run") as (address, _, wait), proxied(address, seed, mean) as (through, proxy):

        def live(k: int) -> None:
            own = site.client(f"c{k + 1}")
            way = line(through, own)
            session = Session(way, OwnWorker(pulls[k]), tmp_path / "work" / f"c{k + 1}", k + 1)
            try:
                ended[k] = session.work()
            except BaseException as error:
                ended[k] = error
            finally:
                way.channel.close()

        threads = [threading.Thread(target=live, args=(k,), daemon=True) for k in range(3)]
        for thread in threads:
            thread.start()
        lines = tmp_path / "run" / "rounds.jsonl"
        while any(t.is_alive() for t in threads):
            for thread in threads:
                thread.join(0.1)
            # Once the rounds are over, clients are let through to hear of it.
            proxy.calm = proxy.calm or lines.read_text().count("\n") >= rounds
        wait()
    assert all(isinstance(end, str) for end in ended.values()), ended
    assert sum(proxy.done.values()) >= 5, proxy.done
    assert np.array_equal(weights(tmp_path / "run"), expected(pulls, rounds))
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(3)}
    check(tmp_path / "run", folders, rounds, dict.fromkeys(range(3), 10))
