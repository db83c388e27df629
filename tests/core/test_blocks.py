# SPDX-License-Identifier: Apache-2.0
"""What is done a block at a time, with vectors in files, is to the bit what is done at once, in memory."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedweave import Local, blocks
from fedweave.algorithms import REGISTRY, FedAvg, FedAvgM
from fedweave.contract import Cohort, Work
from fedweave.coordinator import Arrived, Begin, Coordinator, Tally, finite
from fedweave.coordinator.course import Base, Gathered
from fedweave.errors import StoreError, UsageError
from fedweave.layout import Layout, model_hash
from fedweave.net.tasks import pattern
from fedweave.policy import Rules, Synchronous
from fedweave.reduce import Mean, Median, TrimmedMean
from fedweave.reduce.fold import Fold
from fedweave.reduce.streamed import Streamed
from fedweave.store.room import Files
from fedweave.values import State, Update
from fedweave.wire.tensors import plain

SIZE = 53
POINTWISE = [name for name, kind in REGISTRY.items() if kind.__name__ not in ("FedMA", "FedBN", "FedPer", "FedRep")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "VALUES", 8)


def drawn(seed: int, size: int = SIZE) -> Any:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def same(first: Any, second: Any) -> None:
    """Equal to the bit, names, types and their order included."""
    assert list(first) == list(second)
    for name in first:
        a, b = np.asarray(first[name]), np.asarray(second[name])
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def lies_in_a_file(value: Any) -> bool:
    while isinstance(value, np.ndarray):
        value = value.base
    return isinstance(value.obj if isinstance(value, memoryview) else value, mmap.mmap)


def test_a_vector_written_in_pieces_comes_back_from_a_file_without_a_name(tmp_path: Path) -> None:
    sink = Files(tmp_path).sink(np.float32)
    for start in range(0, SIZE, 10):
        sink.write(drawn(1)[start : start + 10])
    found = sink.close()
    assert np.array_equal(found, drawn(1))
    assert found.dtype == np.float32
    assert lies_in_a_file(found)
    assert not found.flags.writeable
    assert not list(tmp_path.iterdir())
    assert len(Files(tmp_path).sink(np.float64).close()) == 0


def test_a_full_disk_is_waited_for_and_nothing_is_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, left = os.pwrite, [5, 0, 0]

    def short(file: int, view: Any, at: int) -> int:
        if not left:
            return really(file, view, at)
        if (some := left.pop(0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(file, view[:some], at)

    tries = []

    def patiently(work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except StoreError as error:
                tries.append(str(error))

    monkeypatch.setattr(os, "pwrite", short)
    sink = Files(tmp_path, patiently).sink(np.float32)
    sink.write(drawn(1))
    sink.write(drawn(2))
    assert np.array_equal(sink.close(), np.concatenate([drawn(1), drawn(2)]))
    assert len(tries) == 2
    assert "No space left on device" in tries[0]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        Files(tmp_path / "nowhere").sink(np.float32)


def test_parts_of_a_file_leave_memory_and_come_back(tmp_path: Path) -> None:
    size = 8 * blocks.VALUES

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024

    sink = Files(tmp_path).sink(np.float32)
    for start in range(8):
        sink.write(np.full(blocks.VALUES, start, np.float32))
    found, base, most, total = sink.close(), mapped(), 0, 0.0
    for part in blocks.parts(found):
        total += float(part.sum())
        most = max(most, mapped() - base)
    assert total == blocks.VALUES * sum(range(8))
    assert 2 * blocks.VALUES < most < size, "a block at a time of the 8 is in memory"
    assert float(found[-1]) == 7.0


def test_what_is_no_file_or_may_be_written_to_is_left_alone(small: None) -> None:
    anonymous = mmap.mmap(-1, 4 * SIZE)
    found = np.frombuffer(anonymous, np.float32)
    found[:] = drawn(1)
    for value in (found, drawn(1)):
        blocks.release(value)
        assert np.array_equal(value, drawn(1))


@pytest.mark.parametrize("place", [0, 20, SIZE - 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_blocks_find_what_is_not_finite(small: None, place: int, bad: float) -> None:
    value = drawn(1)
    assert finite(value)
    value[place] = bad
    assert not finite(value)


def test_hash_does_not_depend_on_blocks(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model_hash(drawn(1), drawn(2, 20))
    monkeypatch.setattr(blocks, "VALUES", 1 << 20)
    assert model_hash(drawn(1), drawn(2, 20)) == found


def _states(name: str) -> tuple[Any, State, Update]:
    """An algorithm, a state some rounds old, and an aggregate of what its clients send."""
    algorithm = REGISTRY[name]()
    state, rounds = algorithm.init(drawn(1)), range(1, 4)
    for number in rounds:
        ask = algorithm.ask(state, 0)
        work = Work(10, 3, 0.1, start_loss=1.5 - 0.1 * number, start_gradient=drawn(10 + number))
        if algorithm.surveys:
            said, _ = algorithm.survey(work, ask, None)
            state = algorithm.surveyed(state, Mean().result(Mean().add(Mean().empty(), said)), Cohort(1, 2, 5, number))
        update, _ = algorithm.report(drawn(20 + number, len(algorithm.start(ask, None))), work, ask, None)
        aggregate = Mean().result(Mean().add(Mean().empty(), update))
        assert aggregate is not None
        if number < rounds[-1]:
            state = algorithm.step(state, aggregate, Cohort(1, 2, 5, number))
    return algorithm, state, aggregate


@pytest.mark.parametrize("name", POINTWISE)
def test_a_step_in_blocks_is_the_step(name: str, small: None, tmp_path: Path) -> None:
    algorithm, state, aggregate = _states(name)
    assert blocks.pointwise(algorithm)
    cohort, room = Cohort(1, 2, 5, 3), Files(tmp_path)
    whole = algorithm.step(state, aggregate, cohort)
    found = blocks.changed(lambda before, given: algorithm.step(before, given, cohort), [state, aggregate], room)
    same(found, whole)
    assert not np.array_equal(whole.weights, state.weights)
    assert lies_in_a_file(found.weights)
    same(blocks.changed(lambda start: algorithm.init(start.weights), [State(weights=drawn(1))], room), algorithm.init(drawn(1)))


@pytest.mark.parametrize("name", POINTWISE)
def test_the_pattern_of_updates_is_seen_by_a_few_values(name: str) -> None:
    algorithm, state, _ = _states(name)
    ask = algorithm.ask(state, 0)
    work = Work(1, 1, 1.0, start_loss=1.0, start_gradient=drawn(2))
    update, _ = algorithm.report(drawn(1, len(algorithm.start(ask, None))), work, ask, None)
    shapes = {key: getattr(value, "shape", None) for key, value in update.items() if getattr(value, "shape", ())}
    found = pattern(algorithm, state, np.zeros(0), False, False)
    assert {key: kind[1] for key, kind in found.items() if kind is not None} == shapes
    assert found.keys() == update.keys()


def test_who_overrides_a_hook_has_to_say_that_it_works_in_blocks() -> None:
    @dataclass(frozen=True)
    class Normed(FedAvg):
        def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
            return state.replace(weights=state.weights + aggregate.delta / np.linalg.norm(aggregate.delta))

    @dataclass(frozen=True)
    class Named(FedAvg):
        mark: int = 0

    assert not blocks.pointwise(Normed())
    assert blocks.pointwise(Named())
    assert not any(blocks.pointwise(REGISTRY[name]()) for name in REGISTRY.keys() - set(POINTWISE))
    assert not blocks.pointwise(object())


def test_what_a_step_leaves_as_it_is_is_not_written_again(small: None, tmp_path: Path) -> None:
    control = drawn(2)
    state = State(weights=drawn(1), control=control, rounds=1)
    found = blocks.changed(lambda s: s.replace(weights=s.weights + 1, rounds=s.rounds + 1), [state], Files(tmp_path))
    assert found.control is control
    assert found.rounds == 2
    assert np.array_equal(found.weights, drawn(1) + 1)


LENGTHS = st.integers(1, 40)


@given(st.data())
def test_a_streamed_reduction_is_the_reduction(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """By cohorts of any size in blocks, with weights of 0, discounts, numbers and arrays of any length."""
    reduction = data.draw(st.sampled_from([Mean(), Median(), TrimmedMean(1)]))
    size, short, count = data.draw(LENGTHS), data.draw(st.integers(0, 9)), data.draw(st.integers(1, 40))
    floats = arrays.arrays(np.float32, (count, size + short), elements=st.floats(-1e6, 1e6, width=32), fill=st.just(0.1))
    rows, weights = data.draw(floats), data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    factor, two = data.draw(st.sampled_from([1.0, 0.3])), data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "VALUES", 8)
        both = []
        for kind in (reduction, Streamed(reduction, Files(tmp_path_factory.getbasetemp()))):
            fold = Fold(kind, count)
            for k in range(count):
                delta = rows[k, :size].reshape(2, -1) if two and size % 2 == 0 else rows[k, :size]
                loss = {"loss": float(k)} if isinstance(reduction, Mean) else {}
                update = Update(delta=delta, buffers=rows[k, size:], weight=weights[k], **loss)
                partial = kind.add(kind.empty(), update)
                fold.add(k, k + 1, kind.scaled(partial, factor, ("buffers",)) if factor != 1.0 else partial)
            both.append(kind.result(fold.result()))
    whole, streamed = both
    assert (whole is None) == (streamed is None)
    if whole is not None:
        same(streamed, whole)
        assert lies_in_a_file(streamed.delta) == (size > 8)


def test_a_streamed_mean_is_a_mean(tmp_path: Path) -> None:
    assert Streamed(Mean(), Files(tmp_path)).linear
    assert not Streamed(Median(), Files(tmp_path)).linear
    replace(REGISTRY["scaffold"](), reduce=Streamed(Mean(), Files(tmp_path))).check(Local(), 3)
    with pytest.raises(UsageError, match="reduce"):
        replace(REGISTRY["scaffold"](), reduce=Streamed(Median(), Files(tmp_path))).check(Local(), 3)


@pytest.mark.parametrize("name", ["fedavgm", "mime"])
def test_a_coordinator_with_room_comes_to_the_same_model(name: str, small: None, tmp_path: Path) -> None:
    found = []
    for room in (None, Files(tmp_path)):
        algorithm = REGISTRY[name]()
        c = Coordinator(
            algorithm, algorithm.init(drawn(1)), np.zeros(0), 3, 3, Synchronous(), Rules(2, evaluate_every=0), 0, room=room
        )
        c.handle(Begin())
        for number in (1, 2):
            for survey in (True, False) if algorithm.surveys else (False,):
                for k in range(3):
                    key = "gradient" if survey else "delta"
                    update = Update(**{key: drawn(100 * number + k), "weight": k + 1})
                    c.handle(Arrived(number, k, k + 1, Mean().add(Mean().empty(), update), Tally(counted=1), survey))
        assert c.phase == "done"
        assert lies_in_a_file(c.state.weights) == (room is not None)
        found.append(c.history[-1].model_hash)
    assert found[0] == found[1]


def test_a_model_is_mixed_in_in_blocks(small: None, tmp_path: Path) -> None:
    found, algorithm = [], FedAvgM()
    base = Base(algorithm.init(drawn(7)), np.zeros(0))
    for room in (None, Files(tmp_path)):
        c = Coordinator(algorithm, algorithm.init(drawn(1)), np.zeros(0), 3, 3, Synchronous(), Rules(2), 0, room=room)
        aggregate = Update(delta=drawn(3), weight=1.0)
        found.append(c._stepped(Gathered(1, np.zeros(1, np.int64), None, Tally(), mix=(0.3, base)), aggregate))
    same(found[1], found[0])


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
KINDS = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


@given(
    st.dictionaries(
        NAMES, st.tuples(st.sampled_from(KINDS), arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)), min_size=1
    )
)
def test_a_file_in_pieces_is_what_the_library_writes(kinds: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    values = {name: np.asarray(100 * rng.random(shape)).astype(kind) for name, (kind, shape) in kinds.items()}
    assert b"".join(plain(values)) == safetensors.numpy.save(values)


def test_tensors_out_of_a_vector_are_views_of_it_unless_copied() -> None:
    layout = Layout.of([("a", (2, 3), "float32"), ("b", (4,), "float32")], [("n", (), "int64")])
    weights, buffers = drawn(1, 10), np.array([2.6], np.float32)
    views, copies = layout.unflatten(weights, buffers, copy=False), layout.unflatten(weights, buffers)
    same(views, copies)
    assert int(views["n"]) == 3
    assert np.shares_memory(views["a"], weights)
    assert not np.shares_memory(copies["a"], weights)
