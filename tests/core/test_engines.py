# SPDX-License-Identifier: Apache-2.0
"""What every engine must do: the same work as the plain one to rounding, and the same bits for any number of processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedweave as fw
from fedweave.algorithms import REGISTRY
from fedweave.contract import Algorithm
from fedweave.engines import building, parcels
from fedweave.engines import compiled as making
from fedweave.engines.choosing import LARGE, Work, choose
from fedweave.engines.rows import together
from fedweave.engines.stacks import Mapped, stack
from fedweave.engines.trying import refusal
from fedweave.engines.vectorized import width
from fedweave.engines.workers import possible
from fedweave.errors import EngineError, UnknownName, UsageError
from fedweave.history import ClientDone
from fedweave.models import Model
from fedweave.randomness import Stream, generator
from fedweave.reduce import REDUCTIONS
from fedweave.result import Result

forks = pytest.mark.skipif(not possible(), reason="processes are forked on Linux only")
ENGINES = ("eager", "vectorized")
CLIENTS = 37


def uneven(seed: int = 0) -> fw.data.Split:
    """Clients of 0 to 30 examples."""
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, 0, 1, *draw.integers(2, 31, CLIENTS - 2)])
    x = draw.normal(size=(offsets[-1], 6)).astype(np.float32)
    data = fw.data.from_arrays(x, (x @ draw.normal(size=(6, 4))).argmax(1), test=None)
    return fw.data.Split(data, draw.permutation(len(x)), offsets)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def run(engine: str, workers: int = 1, **changes: Any) -> Result:
    arguments: dict[str, Any] = {
        "model": two_layers, "data": uneven(), "cohort": 33, "rounds": 3, "local": fw.Local(lr=0.1, batch_size=4),
        "engine": engine, "workers": workers, "evaluate_every": 0,
    }  # fmt: skip
    return fw.simulate(**(arguments | changes))


def same(found: Result, expected: Result) -> None:
    """The same to rounding, and exactly in all that is counted."""
    for name, value in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], value, rtol=2e-3, atol=2e-5)
    for a, b in zip(found.history, expected.history, strict=True):
        counted = ("cohort", "bytes_down", "bytes_up", "examples", "steps", "refused", "dropped")
        assert [getattr(a, name) for name in counted] == [getattr(b, name) for name in counted]
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4)


ALGORITHMS = sorted(set(REGISTRY) - {"fedbn", "fedma"})


class EngineContract:
    """Passed by every engine, with every algorithm."""

    engine: ClassVar[str]

    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_it_trains_as_the_plain_engine_does(self, name: str) -> None:
        same(run(self.engine, algorithm=name), run("eager", algorithm=name))

    @pytest.mark.parametrize(
        "local",
        [
            fw.Local(lr=0.1, batch_size=4, momentum=0.9, weight_decay=0.01),
            fw.Local(lr=0.1, batch_size=None, epochs=2, clip_norm=0.1),
            fw.Local(lr=0.01, batch_size=7, steps=5, optimizer="adam"),
            fw.Local(lr=0.1, batch_size=3, epochs=1.5, shuffle="once", lr_decay=0.5, weight_decay=0.1),
        ],
    )
    def test_it_trains_as_the_plain_engine_does_however_clients_train(self, local: fw.Local) -> None:
        same(run(self.engine, local=local), run("eager", local=local))
        same(run(self.engine, local=local, algorithm="ditto"), run("eager", local=local, algorithm="ditto"))

    @pytest.mark.parametrize("effort", ["uniform(low=0, high=4)", "stragglers(share=0.5)", "stragglers(share=0.4, drop=True)"])
    def test_unequal_work(self, effort: str) -> None:
        for name in ("fednova", "scaffold", "fedavg"):
            same(run(self.engine, algorithm=name, effort=effort), run("eager", algorithm=name, effort=effort))

    @pytest.mark.parametrize("attack", ["label-flip", "alie", "bit-flip"])
    def test_bad_clients(self, attack: str) -> None:
        changes: dict[str, Any] = {"attack": attack, "byzantine": 5, "algorithm": "fedavg(reduce=median)"}
        same(run(self.engine, **changes), run("eager", **changes))

    def test_models_whose_buffers_move(self) -> None:
        changes: dict[str, Any] = {"model": with_norm, "local": fw.Local(lr=0.1, batch_size=None), "data": larger()}
        for name in ("fedavg", "fedbn"):
            same(run(self.engine, algorithm=name, **changes), run("eager", algorithm=name, **changes))

    @forks
    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_the_number_of_processes_changes_no_bit(self, name: str) -> None:
        count = 2 + ALGORITHMS.index(name) % 2
        assert run(self.engine, count, algorithm=name).model_hash == run(self.engine, algorithm=name).model_hash

    @forks
    @pytest.mark.parametrize("cohort", [1, 5, 37])
    def test_one_two_three_and_five_processes(self, cohort: int) -> None:
        found = [run(self.engine, workers, cohort=cohort, algorithm="scaffold") for workers in (1, 2, 3, 5)]
        assert len({result.model_hash for result in found}) == 1
        assert len({repr([r.plain() | {"seconds": 0} for r in result.history]) for result in found}) == 1

    @forks
    def test_other_reductions_and_attacks_in_processes(self) -> None:
        for reduce in ("krum(f=3)", "geometric_median", "bucketing(s=2, then=median)"):
            changes = {"algorithm": f"fedavg(reduce={reduce})", "attack": "ipm", "byzantine": 4}
            assert run(self.engine, 3, **changes).model_hash == run(self.engine, **changes).model_hash

    @forks
    def test_a_process_that_dies_changes_nothing(self) -> None:
        killed: list[int] = []

        def kill(event: Any) -> None:
            if isinstance(event, ClientDone) and event.done in (3, 20) and len(killed) < 4:
                killed.extend(children := _children())
                for child in children:
                    os.kill(child, signal.SIGKILL)

        # A unit of its own for every client, so that some are under way whenever a process dies.
        found = run(self.engine, 3, algorithm="scaffold", observer=kill, cohort=37)
        assert len(killed) >= 2
        assert found.model_hash == run(self.engine, algorithm="scaffold", cohort=37).model_hash
        assert not _children()

    def test_memory_of_the_caller_is_left_alone(self) -> None:
        before, threads = torch.random.get_rng_state(), torch.get_num_threads()
        run(self.engine, rounds=1)
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.get_num_threads() == threads


class TestEager(EngineContract):
    engine = "eager"


class TestVectorized(EngineContract):
    engine = "vectorized"


class TestOnDevice(EngineContract):
    """Through the wrapper that a GPU gets, on this processor."""

    engine = "cuda"

    @pytest.fixture(autouse=True)
    def _device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(building, "accelerator", lambda: torch.device("cpu"))

    def test_a_process_that_dies_changes_nothing(self) -> None:
        told: list[str] = []
        run("cuda", 3, observer=lambda event: told.append(getattr(event, "engine", "")))
        assert told[0].startswith("cuda (vectorized, cpu), 1 process (as asked for; one process, since the device")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of its own for what is compiled in this module."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
class TestCompiled(EngineContract):
    engine = "compiled"


class Gated(nn.Module):
    """No chain, but torch.func can map it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.out(torch.sigmoid(self.gate(x)) * self.value(x))


def named(engine: str, workers: int = 1, **changes: Any) -> tuple[str, Result]:
    """What the engine says of itself, and what came of the run."""
    told: list[str] = []
    found = run(engine, workers, observer=lambda event: told.append(getattr(event, "engine", "")), **changes)
    return told[0], found


class TestCompiledBriefly:
    """What of the contract is worth its compilations in every run of the tests."""

    @forks
    @pytest.mark.parametrize(
        "changes",
        [
            {"model": Gated, "local": fw.Local(lr=0.1, batch_size=4, weight_decay=0.01), "effort": "uniform(low=0, high=4)"},
            {"algorithm": "scaffold", "data": "larger"},
        ],
        ids=["steps", "gradients"],
    )
    def test_it_trains_as_the_plain_one_in_any_number_of_processes(self, changes: dict[str, Any], programs: Path) -> None:
        changes = changes | ({"data": larger(), "cohort": 1.0} if "data" in changes else {})
        about, found = named("compiled", **changes)
        assert about == "compiled, 1 process (as asked for)"
        assert any(programs.rglob("*.so"))
        same(found, run("eager", **changes))
        assert run("compiled", 3, **changes).model_hash == found.model_hash

    def test_what_cannot_be_compiled_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        about, found = named("compiled", model=with_norm, data=larger(), cohort=1.0, local=fw.Local(batch_size=None))
        assert about.startswith("eager, 1 process (not compiled: its buffer 1.running_mean")

        def none(*_: Any) -> Any:
            raise RuntimeError("\nNo working C++ compiler found")

        monkeypatch.setattr(making, "_program", none)
        about, found = named("compiled")
        expected = "vectorized, 1 process (not compiled: the compilation failed (RuntimeError: No working C++ compiler found))"
        assert about == expected
        assert found.model_hash == run("vectorized").model_hash

    def test_what_comes_out_otherwise_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(step: Any, _: Any) -> Any:
            def off(*arguments: Any) -> Any:
                before = [a.clone() for a in arguments]
                found = step(*arguments)
                for weight, old in zip(arguments[:4], before, strict=False):
                    weight.add_(0.01 * (weight - old))
                return found

            return off

        monkeypatch.setattr(making, "_program", wrong)
        assert "not compiled: the compiled step comes out otherwise" in named("compiled")[0]
        monkeypatch.setattr(making, "_program", lambda step, _: step)
        assert named("compiled")[0].startswith("compiled")

    def test_what_is_compiled_is_a_choice_of_long_runs(self) -> None:
        model = Model(Gated())
        mapped = stack(model, torch.randn(9, 6), torch.randint(0, 4, (9,)))
        chained = stack(Model(two_layers()), torch.randn(9, 6), torch.randint(0, 4, (9,)))
        assert isinstance(mapped, Mapped)
        short, long = Work(100, 10, 10, 10), Work(100, 1000, 100, 10)
        assert [choose(model, mapped, work, None, 1).kernel for work in (short, long)] == ["vectorized", "compiled"]
        assert choose(Model(two_layers()), chained, long, None, 1).kernel == "vectorized"


@given(
    clients=st.integers(2, 5), batch=st.integers(1, 4), live=st.integers(1, 5), rows=st.integers(1, 5), size=st.integers(1, 4)
)
def test_a_smaller_stack_is_filled_up(clients: int, batch: int, live: int, rows: int, size: int) -> None:
    """With the step as it is before it is compiled, against the plain stack."""
    live, rows = sorted((min(live, clients), min(rows, clients)))
    size = min(size, batch)
    torch.manual_seed(0)
    model, x, y = Model(Gated()), torch.randn(20, 6), torch.randint(0, 4, (20,))
    plain = Mapped(model)
    draw = [torch.randn(rows, *p.shape) for p in model.tensors]
    xs, ys = x[: live * size].view(live, size, 6), y[: live * size].view(live, size)
    for descends in (True, False):
        made = making.Compiled(plain, making._traced(model, len(draw), descends), clients, batch, descends)
        here, there = [w.clone() for w in draw], [w.clone() for w in draw]
        if descends:
            torch.testing.assert_close(made.descend(here, xs, ys, 0.3, 0.9), plain.descend(there, xs, ys, 0.3, 0.9))
        else:
            (found, here), (losses, there) = (s.gradient([w[:live] for w in draw], xs, ys) for s in (made, plain))  # type: ignore[assignment]
            torch.testing.assert_close(found, losses)
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(a, b)


FRESH = """
import sys
import fedweave as fw
from torch import nn, sigmoid
class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)
    def forward(self, x):
        return self.out(sigmoid(self.gate(x)) * self.value(x))
told = []
found = fw.simulate(
    model=Gated, data=fw.data.load_split(sys.argv[1]), cohort=33, rounds=2, engine="compiled", workers=int(sys.argv[2]),
    evaluate_every=0, local=fw.Local(lr=0.1, batch_size=4), observer=lambda e: told.append(getattr(e, "engine", "")),
)
print(found.model_hash)
print(told[0].split(",")[0])
"""


@forks
@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_other_processes_get_the_same_bits_with_the_programs_kept_or_without(tmp_path: Path) -> None:
    uneven().save(tmp_path / "data")

    def fresh(cache: str, workers: int) -> list[str]:
        environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
        environment |= {"FEDWEAVE_CACHE": str(tmp_path / cache), "PYTHONHASHSEED": str(workers)}
        command = [sys.executable, "-c", FRESH, str(tmp_path / "data"), str(workers)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    found = fresh("one", 1)
    assert found[1] == "compiled"
    made = sorted((tmp_path / "one" / "compiled").rglob("*.so"))
    assert made
    assert fresh("one", 2) == found
    assert sorted((tmp_path / "one" / "compiled").rglob("*.so")) == made  # nothing was compiled again
    assert fresh("two", 1) == found
    assert run("compiled", model=Gated, rounds=2).model_hash == found[0]


def larger() -> fw.data.Split:
    """Clients of 2 examples and more."""
    split = uneven()
    return fw.data.from_clients([split.client(k) for k in range(split.clients) if split.sizes[k] > 1])


def _children() -> list[int]:
    """Processes that this one has forked and that live."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                found.append(int(child))
    return found


@dataclass(frozen=True)
class Signed(fw.FedAvg):
    """Says which process each update was made in."""

    def report(self, delta: Any, work: Any, ask: Any, mine: Any) -> Any:
        return fw.Update(delta=delta, weight=1.0), fw.Arrays(process=np.array([os.getpid()]))


@forks
def test_all_processes_train(tmp_path: Path) -> None:
    found = run("eager", 3, algorithm=Signed(), local=fw.Local(steps=400, batch_size=4), rounds=1, out=tmp_path / "run")
    assert found.history[0].seconds > 0
    pages = b"".join(path.read_bytes() for path in (tmp_path / "run" / "clients").iterdir())
    pids = {int(value) for value in np.frombuffer(pages[: len(pages) // 8 * 8], "<i8")}
    assert os.getpid() in pids
    assert len(pids - {os.getpid(), 0}) >= 2


@forks
def test_of_two_clients_each_process_trains_one(tmp_path: Path) -> None:
    algorithm, local = Signed(), fw.Local(steps=50, batch_size=4)
    for rounds in range(1, 4):
        out = tmp_path / f"{rounds}"
        run("eager", 2, data=larger(), cohort=2, algorithm=algorithm, local=local, rounds=rounds, out=out)
        pages = b"".join(path.read_bytes() for path in (out / "clients").iterdir())
        pids = {int(value) for value in np.frombuffer(pages[: len(pages) // 8 * 8], "<i8")} - {0}
        assert os.getpid() in pids
        assert len(pids) >= 2


# What goes wrong ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadly(fw.FedAvg):
    """One client's training ends the process that it is in, unless it is this one."""

    home: int = 0

    def report(self, delta: Any, work: Any, ask: Any, mine: Any) -> Any:
        if os.getpid() != self.home:
            os._exit(9)
        return super().report(delta, work, ask, mine)


@forks
def test_a_unit_that_kills_every_process_ends_the_run_with_a_sentence() -> None:
    with pytest.raises(EngineError, match=r"3 worker processes died while they trained clients \d+ to \d+"):
        run("eager", 2, algorithm=Deadly(home=os.getpid()), rounds=200)
    assert not _children()


@dataclass(frozen=True)
class Refusing(fw.FedAvg):
    """Its hook raises."""

    def report(self, delta: Any, work: Any, ask: Any, mine: Any) -> Any:
        raise UnknownName("thing", "x", ["y"])


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_process_is_an_error_here(workers: int) -> None:
    with pytest.raises((UnknownName, EngineError), match="There is no thing called 'x'"):
        run("eager", workers, algorithm=Refusing())
    assert not _children()


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"no engine called 'vectorised'\. Did you mean 'vectorized'"):
        run("vectorised")
    with pytest.raises(UsageError, match="workers is 0"):
        run("eager", 0)
    with pytest.raises(UsageError, match="threads is 2 and workers is 2"):
        run("eager", 2, threads=2)


@forks
def test_an_interrupted_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole = run("eager", algorithm="scaffold", rounds=6)
    run("eager", 3, algorithm="scaffold", rounds=3, out=tmp_path / "run")
    assert fw.resume(tmp_path / "run", rounds=6, model=two_layers, data=uneven()).model_hash == whole.model_hash


# Which one is chosen -----------------------------------------------------------------------------------------------------


def test_small_models_are_stacked_and_large_ones_are_not() -> None:
    told: list[str] = []

    def engine(**changes: Any) -> str:
        told.clear()
        run("auto", observer=lambda event: told.append(getattr(event, "engine", "")), **({"rounds": 1} | changes))
        return told[0]

    assert engine().startswith("vectorized, 1 process (many clients at once: 59 parameters")
    assert engine(cohort=2).startswith("eager, 1 process (one client at a time: a cohort of 2")
    wide = lambda: nn.Sequential(nn.Linear(6, 8000), nn.ReLU(), nn.Linear(8000, 4))  # noqa: E731
    assert "would not fit the cache" in engine(model=wide)
    assert "buffer 1.running_mean" in engine(model=with_norm, data=larger(), local=fw.Local(batch_size=None))
    assert "FedMA changes how each client trains" in engine(algorithm="fedma", cohort=1.0, rounds=2, data=larger())
    assert "Peculiar's hooks do not take a stack" in engine(algorithm=Peculiar())


def test_processes_where_a_round_is_long_enough() -> None:
    model = Model(two_layers())
    short, long = Work(10, 100, 10, 10), Work(100, 100, 1000, 10)
    assert choose(model, "no", short, None, None).workers == 1
    assert choose(model, "no", replace(long, rounds=1), None, None).workers >= 1
    assert choose(model, "no", long, None, 3).workers == 3
    from fedweave.reduce.parallel import cores

    assert choose(model, "no", long, None, None).workers == (cores() if possible() else 1)
    assert choose(model, "no", replace(long, cohort=1), None, None).workers == 1


def test_work_is_that_of_the_median_client() -> None:
    split = larger()
    half = float(np.median(split.sizes))
    assert Work.of(split, 5, 7, 2, None, None) == Work(5, 7, 2.0, half)
    assert Work.of(split, 5, 7, 2, None, 4) == Work(5, 7, 2 * np.ceil(half / 4), 4.0)
    assert Work.of(split, 5, 7, None, 9, 4) == Work(5, 7, 9.0, 4.0)


@given(parameters=st.integers(1, 10**9), itemsize=st.sampled_from([4, 8]))
def test_a_stack_is_whole_blocks_and_bounded(parameters: int, itemsize: int) -> None:
    from fedweave.coordinator import BLOCK

    clients = width(parameters, itemsize)
    assert clients % BLOCK == 0
    assert BLOCK <= clients <= 512
    assert clients == BLOCK or clients * parameters * itemsize <= 2**22
    assert parameters > LARGE or width(parameters, 4) >= 16


@dataclass(frozen=True)
class Peculiar(fw.FedAvg):
    """Its hook decides by a number of one client."""

    def report(self, delta: Any, work: Any, ask: Any, mine: Any) -> Any:
        return fw.Update(delta=delta if work.steps > 3 else 0 * delta, weight=work.examples), mine


@dataclass(frozen=True)
class Mixing(fw.FedAvg):
    """Its correction is wrong for a stack, and raises nothing."""

    def correct(self, grad: Any, y: Any, ask: Any, mine: Any) -> Any:
        return grad + y.mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pull_of_zero_is_none_to_the_bit(engine: str) -> None:
    assert run(engine, algorithm="fedprox(mu=0)").model_hash == run(engine, algorithm="fedavg").model_hash
    assert run(engine, algorithm="fedprox(mu=0.1)").model_hash != run(engine, algorithm="fedavg").model_hash
    for algorithm in (fw.FedProx(mu=0.0), fw.FedNova(mu=0.0)):
        grad, ask = torch.ones(3), fw.Ask(weights=torch.zeros(3), mu=0.0)
        assert torch.equal(algorithm.correct(grad, torch.ones(3), ask, None), grad)
        assert not algorithm.corrects


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"fedma", "fedbn"}))
def test_every_algorithm_takes_a_stack(name: str) -> None:
    model = Model(two_layers())
    assert refusal(REGISTRY[name]().bind(model.layout), model.flat) is None


@pytest.mark.parametrize(("algorithm", "reason"), [(Peculiar(), "do not take a stack"), (Mixing(), "other values")])
def test_hooks_that_take_no_stack_are_found_out(algorithm: Algorithm, reason: str) -> None:
    assert reason in str(refusal(algorithm, Model(two_layers()).flat))
    same(run("vectorized", algorithm=algorithm), run("eager", algorithm=algorithm))


# What they are made of ---------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**40),
    places=st.lists(st.tuples(*[st.integers(0, 2**63)] * 3), min_size=1, max_size=6),
    takes=st.integers(1, 5),
)
def test_a_stream_gives_what_its_generators_give(seed: int, places: list[tuple[int, int, int]], takes: int) -> None:
    stream = Stream(seed, "batches")
    for round, client, index in places:
        found, expected = stream.at(round, client, index), generator(seed, "batches", round, client, index)
        for _ in range(takes):
            assert found.integers(0, 7) == expected.integers(0, 7)  # leaves half a word behind
            assert np.array_equal(found.permutation(9), expected.permutation(9))
            assert found.normal() == expected.normal()


@settings(deadline=None)
@given(
    arrays=st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["f4", "f8", "i8", "u1"]), st.booleans()), max_size=5),
    copied=st.booleans(),
)
def test_a_parcel_arrives_as_it_was_sent(arrays: list[tuple[int, str, bool]], copied: bool) -> None:
    slot = parcels.Slot()
    try:
        for turn in range(2):
            sent = [np.arange(size).astype(kind) + turn for size, kind, _ in arrays]
            given_ = [torch.from_numpy(a) if tensor else a for a, (_, _, tensor) in zip(sent, arrays, strict=True)]
            value = {"arrays": fw.Arrays(**{f"a{i}": a for i, a in enumerate(given_)}), "rest": (1, None, "x", turn)}
            found = parcels.get(parcels.put(value, slot), slot, copied)
            assert found["rest"] == value["rest"]
            for i, (a, (_, _, tensor)) in enumerate(zip(sent, arrays, strict=True)):
                back = found["arrays"][f"a{i}"]
                assert isinstance(back, torch.Tensor) == tensor
                assert np.array_equal(np.asarray(back), a)
                assert np.asarray(back).dtype == a.dtype
    finally:
        slot.close()


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_what_was_reduced_elsewhere_is_what_is_reduced_here(name: str) -> None:
    given_ = {"f": 1, "s": 2, "radius": 1.0}
    fields = REDUCTIONS[name].__dataclass_fields__
    reduce = REDUCTIONS[name](**{key: value for key, value in given_.items() if key in fields})
    draw = np.random.default_rng(0)
    updates = [fw.Update(delta=draw.normal(size=9).astype(np.float32), tau=float(k), weight=k + 1) for k in range(16)]
    here, there = reduce.empty(), reduce.empty()
    for update in updates:
        here = reduce.add(here, update)
        alone = pickle.loads(pickle.dumps(reduce.add(reduce.empty(), update)))  # noqa: S301
        there = reduce.merge(there, alone)
    a, b = reduce.result(here), reduce.result(there)
    assert a is not None
    assert b is not None
    assert a.delta.tobytes() == b.delta.tobytes()
    assert a.tau == b.tau


def test_sums_and_not_updates_go_to_another_process() -> None:
    mean = fw.Mean()
    total = mean.empty()
    for k in range(16):
        total = mean.add(total, fw.Update(delta=np.ones(1000, np.float32), weight=k + 1))
    assert len(pickle.dumps(total)) < 2 * 8 * 1000


def test_records_of_a_stack() -> None:
    shared = torch.ones(3)
    found = together([fw.Ask(weights=shared, mu=1.0, own=torch.full((2,), float(k)), lr=0.1 * k) for k in range(3)])
    assert found.weights is shared
    assert found.mu == 1.0
    assert found.own.shape == (3, 2)
    assert found.lr.shape == (3, 1)
    assert together([None, None]) is None


@forks
def test_what_a_survey_draws_is_addressed_too() -> None:
    changes: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.4), nn.Linear(5, 4)), "algorithm": "mime", "rounds": 2,
    }  # fmt: skip
    assert run("eager", 3, **changes).model_hash == run("eager", **changes).model_hash
