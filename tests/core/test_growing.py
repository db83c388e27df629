# SPDX-License-Identifier: Apache-2.0
"""What the contract has for models that grow layer by layer: frozen layers, other widths, rounds that belong together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedweave as fw
from fedweave import graph
from fedweave.algorithms import FedMA
from fedweave.contract import Arrays, Ask, Setting
from fedweave.history import ClientDone, Event, Round, RoundStarted
from fedweave.layout import Layout
from fedweave.simulation import load_result

CLASSES = 3


# Networks ----------------------------------------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU()),
        *(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES)),
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, CLASSES)),
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1)),
        *(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
    )


class Residual(nn.Module):
    """A stream that one block adds to, batch normalisation throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Reader(nn.Module):
    """Reads tokens with a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.rnn = kind(4, 5, num_layers=layers, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.embedding(x))
        scores: Tensor = self.head(hidden[:, -1])
        return scores


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (6,)),
    "normed": (normed, (6,)),
    "lenet": (lenet, (1, 8, 8)),
    "vgg": (vgg, (1, 8, 8)),
    "residual": (Residual, (1, 8, 8)),
    "lstm": (lambda: Reader(nn.LSTM), ()),
    "lstm of two layers": (lambda: Reader(nn.LSTM, 2), ()),
    "gru": (lambda: Reader(nn.GRU), ()),
}
"""Name -> (factory, shape of an example; none for sequences of tokens)."""


def federation(shape: tuple[int, ...], sizes: tuple[int, ...] = (8, 8, 8), seed: int = 0) -> fw.data.Split:
    draw = np.random.default_rng(seed)

    def pair(count: int, k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        y = draw.integers(0, CLASSES, count)
        if not shape:
            return (draw.integers(0, 9, (count, 5)) + y[:, None]) % 9, y
        return draw.normal(0.2 * k + 0.5 * y.reshape(-1, *[1] * len(shape)), 1.0, (count, *shape)).astype(np.float32), y

    return fw.data.from_clients([pair(size, k) for k, size in enumerate(sizes)], test=pair(24, 1))


LOCAL = fw.Local(lr=0.1, steps=3, batch_size=4)


def run(name: str, which: FedMA | None = None, **options: Any) -> fw.Result:
    make, shape = NETWORKS[name]
    given: dict[str, Any] = {"model": make, "data": federation(shape), "local": LOCAL, "cohort": 1.0, "threads": 1}
    given["rounds"] = (len(graph.read(make(), example(shape)).spaces) + 1) * 2
    return fw.simulate(algorithm=which or FedMA(gamma=4.0), **(given | options))


def example(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(2, 5, dtype=torch.int64) if not shape else torch.zeros(2, *shape)


# Renumbered networks -----------------------------------------------------------------------------------------------------


def renumbered(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """A network with arbitrary weights, and a factory of the same with every layer's units renumbered at random."""
    torch.manual_seed(1)
    base = make()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(torch.randn_like(p) / 4)
    wiring = graph.read(base, example(shape))
    values = {name: value.detach().numpy() for name, value in base.state_dict().items()}

    def factory() -> nn.Module:
        places = {space.name: torch.randperm(space.size).numpy() for space in wiring.spaces}
        module = make()
        moved = {n: wiring.spread(n, v, places, wiring.widths, wiring.widths) for n, v in values.items()}
        module.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in moved.items()})
        return module

    return base.eval(), factory


def outputs(module: nn.Module, split: fw.data.Split) -> npt.NDArray[Any]:
    assert split.x_test is not None
    with torch.no_grad():
        return np.asarray(module.eval()(torch.from_numpy(np.asarray(split.x_test))).numpy())


@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_renumbered_clients_are_matched_back_to_their_function(name: str, one_shot: bool) -> None:
    make, shape = NETWORKS[name]
    base, factory = renumbered(make, shape)
    result = run(name, FedMA(one_shot=one_shot), model=factory, local=fw.Local(lr=0.0, steps=0))
    expected = outputs(base, federation(shape))
    np.testing.assert_allclose(outputs(result.module(), federation(shape)), expected, rtol=1e-4, atol=1e-5)
    assert not result.grown
    torch.manual_seed(2)
    several = [factory().state_dict() for _ in range(3)]
    naive = make()
    naive.load_state_dict({n: sum(s[n] for s in several) / 3 if v.is_floating_point() else v for n, v in several[0].items()})
    assert np.abs(outputs(naive, federation(shape)) - expected).max() > 0.1


@pytest.mark.parametrize("name", ["lenet", "lstm", "gru", "normed", "residual"])
def test_renumbered_clients_that_train_alike_are_one_client(name: str) -> None:
    """They hold the same data, so that what they learn is the same but for its numbers; batches' statistics are matched too."""
    make, shape = NETWORKS[name]
    _, factory = renumbered(make, shape)
    x, y = federation(shape).client(0)
    test = federation(shape, seed=1).client(0)
    local = fw.Local(lr=0.05, steps=3, batch_size=None, shuffle="never")
    alone, together = (
        run(name, FedMA(gamma=1e-3), model=factory, data=fw.data.from_clients([(x, y)] * count, test=test), local=local)
        for count in (1, 3)
    )
    assert not together.grown
    split = federation(shape)
    np.testing.assert_allclose(outputs(together.module(), split), outputs(alone.module(), split), rtol=1e-2, atol=2e-3)
    assert np.abs(outputs(alone.module(), split) - outputs(factory(), split)).max() > 0.02


def narrow() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))


@pytest.mark.parametrize("effort", ["full", "stragglers(share=0.5, drop=True)"])
def test_statistics_of_batches_go_on_from_the_servers(effort: str) -> None:
    """Nobody moves and all begin alike, so that only the statistics change: each round is the mean of who came, from where the
    server's were."""
    split = federation((6,), (8, 5, 6, 7))
    local = fw.Local(lr=0.0, steps=2, batch_size=None, shuffle="never")
    result = run("normed", FedMA(last_epochs=1.0), model=narrow, data=split, local=local, rounds=6, effort=effort)
    module = narrow()
    for r in result.history:
        ends = []
        for k in sorted(set(r.cohort) - set(r.dropped)):
            copied = narrow()
            copied.load_state_dict(module.state_dict())
            for _ in range(2):
                copied(torch.from_numpy(np.asarray(split.client(k)[0])))
            ends.append(copied.state_dict())
        module.load_state_dict({n: torch.stack([e[n].double() for e in ends]).mean(0) for n in ends[0]})
    for name in ("1.running_mean", "1.running_var"):
        np.testing.assert_allclose(result.weights[name], module.state_dict()[name].numpy(), rtol=1e-4, atol=1e-6)


# Frozen layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freezing(fw.FedAvg):
    """FedAvg whose clients leave some parameters alone."""

    names: ClassVar[tuple[str, ...]] = ("0.weight", "0.bias", "2.bias")

    def prepare(self, setting: Setting, ask: Ask, mine: Arrays | None) -> Setting:
        return replace(setting, frozen=frozenset(self.names))


@dataclass(frozen=True)
class FreezingByHand(Freezing):
    """The same with a direction of its own, so that it cannot take the plain path."""

    def correct(self, grad: Any, y: Any, ask: Ask, mine: Arrays | None) -> Any:
        return grad


TRAININGS = {
    "plain": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never"),
    "momentum": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never", momentum=0.9),
    "decay": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never", weight_decay=0.1),
    "clipped": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never", clip_norm=0.05),
    "adam": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never", optimizer="adam"),
    "all": fw.Local(lr=0.1, steps=5, batch_size=None, shuffle="never", momentum=0.9, weight_decay=0.1, clip_norm=0.05),
}


@pytest.mark.parametrize("count", [8, 2100])
@pytest.mark.parametrize("kind", sorted(TRAININGS))
def test_frozen_layers_stay_and_the_rest_is_trained_as_torch_does(kind: str, count: int) -> None:
    """Batches of 2,100 are walked through in parts."""
    local, split, module = TRAININGS[kind], federation((6,), (count,)), perceptron()
    given: dict[str, Any] = {"model": module, "data": split, "local": local, "cohort": 1.0, "rounds": 1, "threads": 1}
    found = [fw.simulate(algorithm=which, **given).weights for which in (Freezing(), FreezingByHand())]
    start = {name: value.clone() for name, value in module.state_dict().items()}
    x, y = (torch.from_numpy(np.asarray(part)) for part in split.client(0))
    live = [p for name, p in module.named_parameters() if name not in Freezing.names]
    for name, p in module.named_parameters():
        p.requires_grad_(name not in Freezing.names)
    stepper: torch.optim.Optimizer
    if local.optimizer == "adam":
        stepper = torch.optim.Adam(live, lr=local.lr)
    else:
        stepper = torch.optim.SGD(live, lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay)
    for _ in range(5):
        stepper.zero_grad()
        F.cross_entropy(module(x), y).backward()
        if local.clip_norm is not None:
            nn.utils.clip_grad_norm_(live, local.clip_norm)
        stepper.step()
    for weights in found:
        for name, value in module.state_dict().items():
            if name in Freezing.names:
                assert np.array_equal(weights[name], start[name].numpy())
            else:
                np.testing.assert_allclose(weights[name], value.numpy(), rtol=1e-4, atol=1e-5)
                assert not np.array_equal(weights[name], start[name].numpy())


def test_no_gradient_is_taken_of_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, ...]] = []
    grad = torch.autograd.grad

    def watched(loss: Any, inputs: Any, **options: Any) -> Any:
        asked.append(tuple(p.requires_grad for p in inputs))
        return grad(loss, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    monkeypatch.setattr("fedweave.chain.read", lambda *_, **__: "automatic differentiation is what is watched here")
    run("perceptron", rounds=6)
    steps = [3, 3, 9]
    assert [len(parts) for parts in asked] == [size for size, n in zip((6, 4, 2), steps, strict=True) for _ in range(3 * n)] * 2
    assert all(all(parts) for parts in asked)


class Settled(FedMA):
    """Notes what clients begin and end a round with."""

    seen: ClassVar[list[tuple[int, bool]]] = []

    def report(self, delta: Any, work: Any, ask: Ask, mine: Arrays | None) -> Any:
        assert mine is not None
        frame = self._frame(ask.widths) if ask.phase else self._frame(self.wiring.widths.values())
        moved = frame.layout.unflatten(delta.numpy(), np.zeros(frame.layout.buffer_size, np.float32))
        for name in self._settled(int(ask.phase)):
            self.seen.append((int(ask.phase), bool(moved[name].any())))
        assert any(value.any() for value in moved.values())
        return super().report(delta, work, ask, mine)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("kind", ["plain", "adam", "all"])
def test_matched_layers_do_not_move_by_a_bit(name: str, kind: str) -> None:
    Settled.seen.clear()
    run(name, Settled(gamma=4.0), local=replace(TRAININGS[kind], batch_size=4), evaluate_every=0)
    assert {phase for phase, _ in Settled.seen} >= {1, 2}
    assert not any(moved for _, moved in Settled.seen)


# Models that grew --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_grown_model_runs_is_kept_and_read_back(name: str, tmp_path: Path) -> None:
    result = run(name, out=tmp_path / "run", evaluate="both")
    split, module = federation(NETWORKS[name][1]), result.module()
    assert result.grown
    loss = F.cross_entropy(torch.from_numpy(outputs(module, split)), torch.from_numpy(np.asarray(split.y_test)))
    assert result.history[-1].metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    widths = list(result.history[-1].figures.values())
    own = [space.size for space in graph.read(NETWORKS[name][0](), example(NETWORKS[name][1])).spaces]
    assert all(a >= b for a, b in zip(widths, own, strict=True))
    assert widths != own
    read = graph.read(module, torch.from_numpy(np.asarray(split.x_test[:2])))
    assert [space.size for space in read.spaces] == widths
    assert sum(p.numel() for p in module.parameters()) == result.parameters
    trained = module.train()
    F.cross_entropy(trained(torch.from_numpy(np.asarray(split.x_test))), torch.from_numpy(np.asarray(split.y_test))).backward()
    assert all(p.grad is not None for p in trained.parameters())

    again = load_result(tmp_path / "run")
    assert (again.grown, again.parameters, again.model_hash) == (True, result.parameters, result.model_hash)
    assert again.history == result.history
    final = safetensors.numpy.load((tmp_path / "run" / "final.safetensors").read_bytes())
    for held in (again.weights, final, {n: v.numpy() for n, v in result.module().state_dict().items()}):
        assert {n: v.shape for n, v in held.items()} == {n: v.shape for n, v in result.weights.items()}
        assert all(np.array_equal(held[n], v) for n, v in result.weights.items())


class Crash(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(("name", "rounds"), [("perceptron", range(1, 8)), ("normed", (2, 4, 5)), ("lstm", (3, 5))])
def test_a_run_that_crashes_in_the_middle_of_a_sweep_goes_on_to_the_same_bits(
    name: str, rounds: range | tuple[int, ...], tmp_path: Path
) -> None:
    make, shape = NETWORKS[name]
    options: dict[str, Any] = {
        "data": federation(shape, (8, 8, 8, 8)), "cohort": 3, "rounds": 8, "checkpoint_every": 0.0,
        "effort": "stragglers(share=0.3, drop=True)" if name == "perceptron" else "full",
    }  # fmt: skip
    straight = run(name, **options)
    assert straight.grown
    for number in rounds:

        def crash(event: Event, number: int = number) -> None:
            if isinstance(event, ClientDone) and (event.number, event.done) == (number, 2):
                raise Crash

        with pytest.raises(Crash):
            run(name, **options, out=tmp_path / f"{number}", observer=crash)
        resumed = fw.resume(tmp_path / f"{number}", model=make)
        assert resumed.model_hash == straight.model_hash, number
        assert [r.model_hash for r in resumed.history] == [r.model_hash for r in straight.history]
        assert [(r.metrics, r.figures) for r in resumed.history] == [(r.metrics, r.figures) for r in straight.history]
        assert all(np.array_equal(resumed.weights[n], v) for n, v in straight.weights.items())


def test_a_finished_run_is_prolonged_by_another_sweep(tmp_path: Path) -> None:
    whole = run("perceptron", rounds=9)
    run("perceptron", rounds=5, out=tmp_path / "run")
    assert fw.resume(tmp_path / "run", rounds=9, model=perceptron).model_hash == whole.model_hash
    ended = run("perceptron", FedMA(communicate=False), rounds=9, out=tmp_path / "ended")
    assert (len(ended.history), ended.status) == (3, "rounds")
    assert fw.resume(tmp_path / "ended", rounds=20, model=perceptron).model_hash == ended.model_hash


KILLED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("killing", {killing!r})
killing = importlib.util.module_from_spec(spec)
sys.modules["killing"] = killing
spec.loader.exec_module(killing)
import fedweave as fw

def begin(folder, every):
    split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=6, seed=1)
    return fw.simulate(
        model="small_network:make", data=split, algorithm=fw.FedMA(gamma=3.0), local=fw.Local(lr=0.05, steps=5), cohort=3,
        rounds=24, out=folder, checkpoint_every=every, threads=1, effort="stragglers(share=0.3, drop=True)",
    )

killing.begin = begin
killing.main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""

SMALL = """
from torch import nn

def make():
    hidden = [nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, 10))
"""


@pytest.mark.slow
def test_kills_at_any_moment_and_the_same_bits(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    (tmp_path / "small_network.py").write_text(SMALL)
    code = KILLED.format(killing=str(Path(__file__).parent / "killing.py"))
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "12", str(seed)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 12
    for disturbed in found["runs"]:
        assert disturbed["hash"] == found["hash"]
        assert disturbed["history"] == disturbed["lines"] == found["history"]
        assert disturbed["metrics"] == found["metrics"]


# Rounds that belong together ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "rounds", "measured"),
    [(1, 9, {0, 3, 6, 9}), (1, 8, {0, 3, 6, 8}), (4, 12, {0, 6, 9, 12}), (5, 12, {0, 6, 12}), (6, 9, {0, 6, 9}), (0, 6, set())],
)
def test_only_whole_models_are_measured(every: int, rounds: int, measured: set[int]) -> None:
    """A round is measured if it is the last of its sweep and one of the sweep is due; and so is the very last round."""
    result = run("perceptron", rounds=rounds, evaluate_every=every)
    found = {r.number for r in [*([result.start] if result.start else []), *result.history] if "accuracy" in r.metrics}
    assert found == measured


def test_the_model_changes_only_at_the_end_of_a_sweep() -> None:
    result = run("perceptron", rounds=8)
    hashes = [r.model_hash for r in result.history]
    assert result.start is not None
    assert hashes[:2] == [result.start.model_hash] * 2
    assert hashes[3:5] == [hashes[2]] * 2
    assert hashes[6:] == [hashes[5]] * 2
    assert len(set(hashes)) == 3
    assert result.model_hash == hashes[-1]


def test_a_target_ends_the_run_at_a_whole_model() -> None:
    result = run("perceptron", rounds=9, target=("accuracy", 0.0))
    assert (result.status, len(result.history)) == ("target", 0)
    result = run("perceptron", rounds=30, patience=1)
    assert result.status == "patience"
    assert len(result.history) % 3 == 0


def test_an_algorithm_without_phases_is_asked_in_every_round() -> None:
    """The contract's additions leave the others as they were: FedAvg has no period, no end and no layout of its own."""
    which = fw.FedAvg()
    assert (which.period, which.ends, which.prepares, which.draws, which.wires) == (1, None, False, False, False)
    assert which.layout(which.init(np.zeros(3))) is None
    split = federation((6,), (8, 8, 8, 8))
    result = fw.simulate(model=perceptron, data=split, algorithm=which, local=LOCAL, cohort=2, rounds=6, threads=1)
    assert len({r.cohort for r in result.history}) > 1
    assert not any(r.figures for r in result.history)
    assert not result.grown


# What is told ------------------------------------------------------------------------------------------------------------


def test_widths_over_the_rounds_are_told_kept_and_drawn(tmp_path: Path) -> None:
    from fedweave.app import charts, report

    told: list[Event] = []
    result = run("perceptron", out=tmp_path / "run", observer=told.append)
    rounds = [event for event in told if isinstance(event, Round) and event.number]
    assert rounds == result.history == load_result(tmp_path / "run").history
    assert [e.number for e in told if isinstance(e, RoundStarted)] == list(range(1, 7))
    assert all(list(r.figures) == ["width of 0", "width of 2"] for r in rounds)
    assert rounds[0].figures["width of 0"] > 7
    assert rounds[0].figures["width of 2"] == 5
    assert rounds[2].figures["width of 0"] == len(result.weights["0.bias"]) or rounds[5].figures["width of 0"] == len(
        result.weights["0.bias"]
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["figures"] for line in lines if line["number"]] == [r.figures for r in rounds]
    chart = charts.figures_chart(result.history)
    assert chart is not None
    drawn = [(trace["name"], trace["x"], trace["y"]) for trace in chart["data"]]
    numbers = [float(r.number) for r in rounds]
    assert drawn == [(n.removeprefix("width of "), numbers, [r.figures[n] for r in rounds]) for n in rounds[0].figures]
    html = report.write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "<h2>Layers</h2>" in html
    assert json.dumps(drawn[0][2], separators=(",", ":")) in html.replace(" ", "")


def test_a_layout_with_its_widths_survives_its_text() -> None:
    base = Layout.of([("a.weight", (3, 2), "float32"), ("b.weight", (4, 3), "float32")], [("a.mean", (3,), "float32")])
    wiring = graph.read(normed(), example((6,)))
    layout = wiring.layout(graph_layout(normed()), {"0": 11, "3": 2})
    assert Layout.parse(layout.spell()) == layout
    assert layout.fingerprint != graph_layout(normed()).fingerprint
    assert layout.size == sum(int(np.prod(s.shape)) for s in layout.parameters)
    assert Layout.parse(base.spell()) == base


def graph_layout(module: nn.Module) -> Layout:
    from fedweave.models import Model

    return Model(module).layout
