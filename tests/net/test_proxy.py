# SPDX-License-Identifier: Apache-2.0
"""A network that cuts, flips, delays, repeats, mixes up and partitions: every message is whole or made again, and the model is
the same."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import check
from deploying import Pull, configured, expected, served
from deploying import line as plain_line
from proxying import KINDS, proxied
from test_certified import coordinator, line, weights

from fedweave.net.client import Line, Session
from fedweave.net.own import OwnWorker

TIMES = max(int(os.environ.get("FEDWEAVE_KILLS", "20")) // 20, 1)
"""How much longer than in ``make test``."""


@pytest.mark.parametrize(("size", "mean", "seed"), [(30, 6_000, 0), (400_000, 2_000_000, 1)])
def test_faults_on_the_way_change_nothing(size: int, mean: float, seed: int, site: Any, tmp_path: Path) -> None:
    rounds = (20 if size < 1000 else 5) * TIMES
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
    assert sum(proxy.done.values()) >= 5 * TIMES, proxy.done
    assert TIMES == 1 or proxy.done.keys() >= set(KINDS), proxy.done
    assert np.array_equal(weights(tmp_path / "run"), expected(pulls, rounds))
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(3)}
    check(tmp_path / "run", folders, rounds, dict.fromkeys(range(3), 10))
    print(f"{rounds} rounds of {size} values: {dict(proxy.done)}: 0 failures")


@pytest.mark.slow
def test_a_line_of_one_byte_a_second_holds_nobody_up_for_good(site: Any, tmp_path: Path) -> None:
    """Its client finds that out by itself, within a minute or so, and comes back over another connection."""
    size, rounds = 30, 3
    pulls, ended = [Pull(k, size) for k in range(3)], {}
    config = configured(tmp_path, size, 3, rounds)
    with coordinator(site, config, tmp_path / "run") as (address, _, wait), proxied(address, 0, 1e18) as (through, proxy):
        proxy.crawling = {1}

        def live(k: int) -> None:
            way = line(through, site.client(f"c{k + 1}"))
            try:
                ended[k] = Session(way, OwnWorker(pulls[k]), tmp_path / "work" / f"c{k + 1}", k + 1).work()
            except BaseException as error:
                ended[k] = error
            finally:
                way.channel.close()

        threads = [threading.Thread(target=live, args=(k,), daemon=True) for k in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        took = time.monotonic() - began
        wait()
    assert proxy.done["1 byte/s"] == 1
    assert all(isinstance(end, str) for end in ended.values()), ended
    assert np.array_equal(weights(tmp_path / "run"), expected(pulls, rounds))
    print(f"a connection of 1 byte/s: the run went on after {took:.0f} s")


class Echoing(Line):
    """Every call is made twice or thrice, at once or after later ones; the client has the answer to one of them."""

    draw = random.Random(0)
    before: deque[Any] = deque(maxlen=50)
    sent: Counter[str] = Counter()

    def future(self, method: str, request: Any, seconds: float) -> Any:
        copies = [super(Echoing, self).future(method, request, seconds) for _ in range(self.draw.choice([1, 2, 3]))]
        self.sent[method] += len(copies)
        if method not in ("Join", "Poll", "Status"):
            self.before.append((self, method, request))
        if self.before and self.draw.random() < 0.5:
            # Somebody's call of before, out of its order.
            there, old, again = self.draw.choice(list(self.before))
            Line.future(there, old, again, seconds)
            self.sent["late"] += 1
        return self.draw.choice(copies)


@pytest.mark.parametrize("size", [30, 700_000])
def test_calls_that_come_twice_and_in_another_order_are_counted_once(size: int, tmp_path: Path) -> None:
    """Without certificates, where no nonce refuses them: each call is idempotent by itself."""
    rounds = (20 if size < 1000 else 4) * TIMES
    pulls, ended = [Pull(k, size) for k in range(3)], {}
    Echoing.sent.clear()
    with served(configured(tmp_path, size, 3, rounds), tmp_path / "run") as (address, wait):

        def live(k: int) -> None:
            way = Echoing(**vars(plain_line(address, f"c{k + 1}")))
            try:
                ended[k] = Session(way, OwnWorker(pulls[k]), tmp_path / "work" / f"c{k + 1}", k + 1).work()
            except BaseException as error:
                ended[k] = error

        threads = [threading.Thread(target=live, args=(k,), daemon=True) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        wait()
    for there, _, _ in Echoing.before:
        there.channel.close()
    Echoing.before.clear()
    assert all(isinstance(end, str) for end in ended.values()), ended
    assert Echoing.sent["late"] > rounds
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(3)}
    found = check(tmp_path / "run", folders, rounds, dict.fromkeys(range(3), 10), lambda who: expected(pulls, rounds, who))
    assert found["acknowledged"] == 3 * rounds
    assert all(pull.trained == list(range(1, rounds + 1)) for pull in pulls)
    print(f"{sum(Echoing.sent.values())} calls repeated and out of order, {rounds} rounds of {size} values: 0 failures")
