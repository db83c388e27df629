# SPDX-License-Identifier: Apache-2.0
"""The Ray engine on a real Ray cluster of several nodes on this machine: the bits of the engine in one process, nodes that die
and join in mid-run, and units that kill whoever takes them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import fedweave as fw
from fedweave import history as events
from fedweave.contract import Local
from fedweave.engines import cluster as engine
from fedweave.engines.base import Job, Unit
from fedweave.engines.inline import Inline
from fedweave.engines.performing import cut
from fedweave.engines.recipe import Recipe
from fedweave.errors import EngineError, UsageError
from fedweave.zoo import MODELS

ray = engine._ray()
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster's processes cannot import the tests

STORE = 80 * 2**20
"""Bytes of each node's object store, the least that Ray takes."""


class Nodes:
    """A cluster whose head has no CPU, so that every node that trains can be taken away."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.up: list = []

    def be(self, count: int) -> None:
        while len(self.up) > count:
            self.kill(self.up[-1])
        while len(self.up) < count:
            self.add()

    def add(self):
        self.up.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE))
        return self.up[-1]

    def kill(self, node) -> None:
        self.up.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = found.cluster.address
    yield found
    os.environ.pop("RAY_ADDRESS") if before is None else os.environ.update(RAY_ADDRESS=before)
    found.cluster.shutdown()


def small(clients: int = 14):
    draw = np.random.default_rng(3)
    truth = draw.normal(size=(9, 3))
    held = []
    for _ in range(clients):
        x = draw.normal(size=(int(draw.integers(8, 40)), 9)).astype(np.float32)
        held.append((x, (x @ truth).argmax(1)))
    return fw.data.from_clients(held)


def hashes(result: fw.Result) -> list[str]:
    return [record.model_hash for record in result.history]


PLAIN = {
    "model": "logistic",
    "data": small(),
    "local": Local(lr=0.1, batch_size=5),
    "cohort": 12,
    "rounds": 3,
    "seed": 4,
}


@pytest.mark.parametrize(
    ("count", "changed"),
    [
        (1, {}),
        (2, {"algorithm": "scaffold", "model": "2nn-bn", "local": Local(lr=0.05, batch_size=None)}),
        (3, {"algorithm": "fedavg(reduce=median())", "attack": "ipm(epsilon=0.5)", "byzantine": 3}),
    ],
    ids=["fedavg", "scaffold with buffers", "median under attack"],
)
def test_same_bits_as_in_one_process(nodes: Nodes, count: int, changed: dict, capfd: pytest.CaptureFixture[str]) -> None:
    nodes.be(count)
    given = PLAIN | changed
    there = fw.simulate(**given, engine="ray")
    here = fw.simulate(**given, engine="auto")
    assert hashes(there) == hashes(here)
    assert len(set(hashes(here))) == 3, "the model did not move: nothing was compared"
    assert [r.plain()["metrics"] for r in there.history] == [r.plain()["metrics"] for r in here.history]
    assert capfd.readouterr() == ("", "")
    assert not ray.is_initialized(), "the run began the connection and did not end it"


@dataclass(frozen=True)
class Marked(fw.FedAvg):
    """FedAvg that notes on which nodes it is at work. On the node named in the folder's file ``doomed`` it never ends. On the
    others it waits until that one is at work, and so is the one named in ``joined``, once there is such a file."""

    folder: str = ""

    def report(self, delta, work, ask, mine):
        folder, node = Path(self.folder), ray.get_runtime_context().get_node_id()
        with (folder / "nodes").open("a") as file:
            file.write(f"{node}\n")
        if node == (folder / "doomed").read_text():
            time.sleep(600)
        _until(lambda: _read(folder / "doomed") | _read(folder / "joined") <= _read(folder / "nodes"))
        return super().report(delta, work, ask, mine)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks that look at the process they are in are not to be tried in this one."""
    monkeypatch.setattr("fedweave.engines.building.refusal", lambda *_: "clients are watched one by one")


def _read(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.exists() else set()


def _until(true) -> None:
    end = time.monotonic() + 90
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def test_a_node_dies_in_mid_round_and_another_joins(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes.be(2)
    doomed = nodes.up[0]
    (tmp_path / "doomed").write_text(doomed.node_id)
    lost: list[tuple[str, int]] = []
    lose = engine.RayCrew._lost

    def losing(crew: engine.RayCrew, member, error, again) -> None:
        lost.append((member.node, len(member.pieces)))
        lose(crew, member, error, again)

    def kill() -> None:
        _until(lambda: doomed.node_id in _read(tmp_path / "nodes"))
        nodes.kill(doomed)

    def observe(event: events.Event) -> None:
        if isinstance(event, events.RoundStarted) and event.number == 2:
            (tmp_path / "joined").write_text(nodes.add().node_id)

    monkeypatch.setattr(engine.RayCrew, "_lost", losing)
    one_by_one(monkeypatch)
    killing = threading.Thread(target=kill)
    killing.start()
    there = fw.simulate(**PLAIN | {"algorithm": Marked(folder=str(tmp_path)), "observer": observe}, engine="ray")
    killing.join()
    ended = [(node, pieces > 0) for node, pieces in lost if node is not None]
    assert ended == [(doomed.node_id, True)], "the node was not at work when it was killed"
    assert nodes.up[-1].node_id in _read(tmp_path / "nodes"), "the node that joined was not used"
    assert hashes(there) == hashes(fw.simulate(**PLAIN, engine="eager"))
    assert capfd.readouterr() == ("", "")


def _recipe(algorithm: fw.Algorithm, **changed) -> Recipe:
    split = small(40)
    make = lambda: MODELS["logistic"]((9,), 3)  # noqa: E731
    given = {"make": make, "loss": None, "metrics": {}, "split": split, "algorithm": algorithm, "seed": 1}
    return Recipe(**given | changed)


def _job(algorithm: fw.Algorithm, local: Local | None = None, round: int = 1) -> Job:
    state = algorithm.init(torch.linspace(-1, 1, 30))
    return Job(round, np.arange(40), algorithm, state, torch.zeros(0), [local or Local(batch_size=7)] * 40)


def _units(job: Job, taken: list[int] | None = None) -> Iterator[Unit]:
    for first, last in cut(job, 1, single=True):
        if taken is not None:
            taken.append(first)
        yield Unit(first, last, [None] * (last - first))


def test_units_are_taken_only_when_somebody_is_free(nodes: Nodes) -> None:
    nodes.be(2)
    algorithm = fw.FedAvg()
    job, recipe = _job(algorithm), _recipe(algorithm)
    crew = engine.RayCrew(recipe, workers=1)
    try:
        for _ in zip(range(3), crew.perform(_job(algorithm, round=9), _units(job)), strict=False):
            """Left in the middle: what is still under way is nobody's, and must not be taken for the next job's."""
        taken: list[int] = []
        found = {}
        for done in crew.perform(job, _units(job, taken)):
            found[done.unit] = done
            assert len(taken) <= len(found) + engine.AHEAD
        assert len(crew.members) == 1
    finally:
        crew.close()
    inline = {done.unit: done for done in Inline(recipe.performer()).perform(job, _units(job))}
    assert sorted(found) == sorted(inline)
    for unit, done in inline.items():
        (here,), (there,) = done.blocks, found[unit].blocks
        one, other = (algorithm.reduce.result(block.partial) for block in (here, there))
        assert torch.equal(one.delta, other.delta)
        assert here.tally == there.tally


@dataclass(frozen=True)
class Lethal(fw.FedAvg):
    """Ends the process of whoever trains a client with more than 38 examples, for good."""

    def report(self, delta, work, ask, mine):
        if work.examples > 38:
            os._exit(3)
        return super().report(delta, work, ask, mine)


def test_a_unit_that_kills_every_actor_ends_the_run(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "STRIKES", 2)
    one_by_one(monkeypatch)
    nodes.be(1)
    sizes = small(40).sizes
    with pytest.raises(EngineError) as refused:
        fw.simulate(**PLAIN | {"data": small(40), "cohort": 1.0, "algorithm": Lethal()}, engine="ray")
    lethal = int(np.argmax(sizes > 38))
    assert sizes[lethal] > 38
    assert f"Each of the 2 Ray processes that were to train client {lethal} in round 1 ended" in str(refused.value)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_what_a_client_is_refused_for_is_said_as_in_one_process(nodes: Nodes) -> None:
    nodes.be(1)
    given = PLAIN | {"model": "2nn-bn", "local": Local(batch_size=1)}
    with pytest.raises(UsageError) as here:
        fw.simulate(**given, engine="auto")
    with pytest.raises(UsageError) as there:
        fw.simulate(**given, engine="ray")
    assert type(there.value) is type(here.value)
    assert str(there.value).partition("has a batch")[2] == str(here.value).partition("has a batch")[2] != ""


@pytest.mark.slow
def test_other_versions_on_a_node_are_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.be(1)
    monkeypatch.setattr(engine, "VERSIONS", "fedweave 0.0.1, torch 1, NumPy 1")
    with pytest.raises(EngineError, match=r"cannot start: a node has fedweave .* was started with fedweave 0\.0\.1"):
        fw.simulate(**PLAIN, engine="ray")


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'fedweave\[ray\]'"):
        fw.simulate(**PLAIN, engine="ray")


def test_what_comes_back_is_the_receivers_own() -> None:
    """Sums are added in place, and the object store's memory is not for writing."""
    sent = np.arange(3.0)
    sent.flags.writeable = False
    engine._copied(sent).add_(1)
    assert sent.tolist() == [0, 1, 2]


def test_only_what_is_trained_on_travels() -> None:
    recipe = _recipe(fw.FedAvg())
    x, y = np.zeros((20, 9), np.float32), np.zeros(20, np.int64)
    data = fw.data.from_arrays(x, y, test=(x[:5], y[:5]))
    split = fw.data.partition(data, fw.IID(), clients=4)
    there = _recipe(fw.FedAvg(), split=split).portable().split
    assert there.x_test is None
    assert type(there.x_train) is type(there.order) is np.ndarray
    assert all(np.array_equal(there.indices(k), split.indices(k)) for k in range(4))
    assert recipe.portable().split.test_order is None
