# SPDX-License-Identifier: Apache-2.0
"""Records of named arrays, layouts, names and random streams."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedweave as fw
from fedweave import names
from fedweave.algorithms import algorithm, spell
from fedweave.errors import MismatchError, UnknownName, UsageError
from fedweave.layout import Layout, model_hash
from fedweave.randomness import derive, generator


def test_records_are_immutable_mappings() -> None:
    state = fw.State(weights=np.zeros(3), mu=0.1)
    assert dict(state) == {"weights": state.weights, "mu": 0.1}
    assert len(state) == 2
    assert state["mu"] == state.mu == 0.1
    changed = state.replace(mu=0.2)
    assert isinstance(changed, fw.State)
    assert (state.mu, changed.mu) == (0.1, 0.2)
    assert repr(changed) == "State(weights=[3], mu=0.2)"
    assert state.map(lambda value: 1).weights == 1
    with pytest.raises(AttributeError, match="immutable; use replace"):
        state.mu = 1


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5)


@given(parameters=shapes, buffers=shapes, seed=st.integers(0, 99))
def test_a_layout_flattens_and_back(parameters, buffers, seed: int) -> None:
    layout = Layout.of(
        [(f"p{i}", tuple(s), "float32") for i, s in enumerate(parameters)],
        [(f"b{i}", tuple(s), "float32" if i % 2 else "int64") for i, s in enumerate(buffers)],
    )
    draw = np.random.default_rng(seed)
    named = {s.name: (draw.normal(size=s.shape) * 9).astype(s.dtype) for s in layout.slots}
    weights, stats = layout.flatten(named)
    assert weights.shape == (layout.size,)
    assert stats.shape == (layout.buffer_size,)
    back = layout.unflatten(weights, stats)
    assert list(back) == [s.name for s in layout.slots]
    for name, value in named.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)
    everything = b"".join(np.asarray(v, np.float32).tobytes() for v in named.values())
    assert model_hash(weights, stats) == hashlib.sha256(everything).hexdigest()
    assert Layout.parse(layout.spell()) == layout
    assert layout.nbytes == 4 * (layout.size + layout.buffer_size)


def test_layouts_that_differ_have_other_fingerprints() -> None:
    plain = Layout.of([("a", (2, 3), "float32")])
    assert plain.fingerprint == Layout.of([("a", (2, 3), "float32")]).fingerprint
    others = [
        Layout.of([("b", (2, 3), "float32")]),
        Layout.of([("a", (3, 2), "float32")]),
        Layout.of([("a", (2, 3), "float64")]),
        Layout.of([("a", (2, 3), "float32")], [("b", (), "int64")]),
    ]
    assert len({layout.fingerprint for layout in [plain, *others]}) == 5


def test_a_layout_says_what_does_not_fit() -> None:
    layout = Layout.of([("a", (2,), "float32"), ("b", (1,), "float32")])
    with pytest.raises(MismatchError, match="lack b"):
        layout.flatten({"a": np.zeros(2)})
    with pytest.raises(MismatchError, match="hold c, which"):
        layout.flatten({"a": np.zeros(2), "b": np.zeros(1), "c": np.zeros(1)})
    with pytest.raises(MismatchError, match=r"a has shape \(3,\), but the model's is \(2,\)"):
        layout.flatten({"a": np.zeros(3), "b": np.zeros(1)})
    with pytest.raises(MismatchError, match="a is float32, b is float64"):
        Layout.of([("a", (2,), "float32"), ("b", (1,), "float64")])
    with pytest.raises(MismatchError, match="it has none"):
        Layout.of([])
    with pytest.raises(MismatchError, match="and 2 more"):
        layout.flatten({f"c{i}": np.zeros(1) for i in range(7)} | {"a": np.zeros(2), "b": np.zeros(1)})


# Names


def test_a_call_is_read_and_written() -> None:
    assert names.parse("Dirichlet(alpha=0.3, min_size=5)") == ("dirichlet", {"alpha": 0.3, "min_size": 5})
    assert names.parse(" heart_disease ") == ("heart-disease", {})
    assert algorithm("FedSGD(server_lr=0.5)") == fw.FedSGD(server_lr=0.5)
    assert algorithm(fw.FedAvg()) == fw.FedAvg()


@given(server_lr=st.floats(0, 1e6))
def test_what_is_spelled_reads_back(server_lr: float) -> None:
    assert algorithm(spell(fw.FedSGD(server_lr=server_lr))) == fw.FedSGD(server_lr=server_lr)


@pytest.mark.parametrize(
    "text", ["f(", "f(1)", "f(a=b.c)", "f(**{})", "(a=1)", "f(a=__import__('os'))", "f(a=1)+g(b=2)", "f(a=1"]
)
def test_what_is_no_plain_call_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        names.parse(text)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match=r"no algorithm called 'fedavgg'\. Did you mean 'fedavg'\?"):
        algorithm("fedavgg")
    with pytest.raises(UnknownName, match=r"no parameter of fedsgd called 'serverlr'\. Did you mean 'server_lr'\?"):
        algorithm("fedsgd(serverlr=1)")
    with pytest.raises(UsageError, match=r"'shape' needs sides"):
        names.build("thing", {"shape": lambda sides: sides}, "shape")
    with pytest.raises(UsageError, match="server_lr is -1"):
        algorithm("fedsgd(server_lr=-1)")
    with pytest.raises(UsageError, match="give an Algorithm"):
        algorithm(3)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Mine(fw.FedAvg):
    """An algorithm of a user's own."""

    mu: float = 0.0


def test_an_algorithm_of_ones_own_is_named_by_its_module() -> None:
    text = spell(Mine(mu=0.5))
    assert text == f"{__name__}:Mine(mu=0.5)"
    assert algorithm(text) == Mine(mu=0.5)
    with pytest.raises(UsageError, match="cannot be imported"):
        algorithm("no_such_module:Mine")
    with pytest.raises(UsageError, match="not a fedweave Algorithm"):
        algorithm("builtins:dict")
    assert names.address(lambda: 0) is None


def test_a_factory_default_is_left_out_when_spelled() -> None:
    from dataclasses import field, make_dataclass

    kind = make_dataclass("Kind", [("items", list, field(default_factory=list)), ("size", int, field(default=2))])
    assert names.spell("kind", kind()) == "kind"
    assert names.spell("kind", kind(items=[1], size=3)) == "kind(items=[1], size=3)"


# Randomness

addresses = st.tuples(
    st.integers(0, 2**40),
    st.sampled_from(["cohort", "batches"]),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 9),
)


@given(first=addresses, second=addresses)
def test_a_stream_is_its_address(first, second) -> None:
    one, two = generator(*first).integers(0, 2**63, 8), generator(*second).integers(0, 2**63, 8)
    assert np.array_equal(one, two) == (first == second)
    assert np.array_equal(one, generator(*first).integers(0, 2**63, 8))


def test_streams_look_uniform_across_addresses() -> None:
    draws = np.array([generator(1, "cohort", r, c).random() for r in range(50) for c in range(50)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.06
    assert derive(1, "x") != derive(1, "y")


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_a_seed_that_is_no_whole_number_is_refused(seed) -> None:
    with pytest.raises(UsageError, match="seed is"):
        generator(seed, "cohort")
