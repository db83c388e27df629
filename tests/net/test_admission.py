# SPDX-License-Identifier: Apache-2.0
"""F5: bad updates are refused with a reason, and the model is that of the run without them."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.coordinator import Arrived, Begin, Collect, Coordinator, Failed, Tally, Train
from fedweave.net.admission import MOST_EXAMPLES, Claim, declared, fault, misplaced
from fedweave.policy import Rules, Synchronous
from fedweave.values import Update
from fedweave.wire.headers import Tensor

P = 5
ARRAYS = {"delta": Tensor("float32", (P,)), "buffers": Tensor("float32", (2,))}
NUMBERS = frozenset({"weight"})
AWAITED = Claim("0f" * 16, 3, "1a" * 16, "ada", 4096)
CLAIM = dataclasses.replace(AWAITED, nbytes=100)


def refusal(found: Update, examples: int = 10, cap: float = 1.0) -> str | None:
    return fault(found, ARRAYS, NUMBERS, examples, cap)


def update(**changed: Any) -> Update:
    good = {"delta": np.ones(P, np.float32), "buffers": np.zeros(2, np.float32), "weight": 10.0}
    return Update(**{name: value for name, value in (good | changed).items() if value is not None})


def at(place: int, value: float) -> Any:
    delta = np.ones(P, np.float32)
    delta[place] = value
    return delta


BAD: dict[str, tuple[Update, str]] = {
    "NaN": (update(delta=at(2, math.nan)), "delta has values that are not finite"),
    "Inf": (update(delta=at(0, math.inf)), "delta has values that are not finite"),
    "-Inf": (update(delta=at(4, -math.inf)), "delta has values that are not finite"),
    "Inf - Inf": (update(delta=np.array([math.inf, -math.inf, 0, 0, 0], np.float32)), "not finite"),
    "NaN in buffers": (update(buffers=np.array([0, math.nan], np.float32)), "buffers has values that are not finite"),
    "shape (1,)": (update(delta=np.ones(1, np.float32)), r"shape \[1\], not \[5\]"),
    "shape ()": (update(delta=np.float32(1)), "is no array"),
    "shape (5, 1)": (update(delta=np.ones((P, 1), np.float32)), r"shape \[5, 1\]"),
    "one too many": (update(delta=np.ones(P + 1, np.float32)), r"shape \[6\], not \[5\]"),
    "one too few": (update(delta=np.ones(P - 1, np.float32)), r"shape \[4\], not \[5\]"),
    "empty": (update(delta=np.ones(0, np.float32)), r"shape \[0\]"),
    "float64": (update(delta=np.ones(P)), "type float64, not float32"),
    "whole numbers": (update(delta=np.ones(P, np.int32)), "type int32, not float32"),
    "complex": (update(delta=np.ones(P, np.complex64)), "type complex64"),
    "the other byte order": (update(delta=np.ones(P, ">f4")), "type >f4"),
    "objects": (update(delta=np.array([object()] * P)), "type object"),
    "texts": (update(delta=np.array(["1"] * P)), "type <U1"),
    "a list": (update(delta=[1.0] * P), "is no array"),
    "a text": (update(delta="11111"), "is no array"),
    "a key is missing": (update(buffers=None), "it lacks 'buffers'"),
    "no weight": (update(weight=None), "it lacks 'weight'"),
    "nothing": (Update(), "it lacks 'buffers', 'delta', 'weight'"),
    "a key too many": (update(extra=np.ones(3)), "it holds 'extra', which nobody asked for"),
    "a key of another name": (update(**{"../delta\n": np.ones(3)}), r"it holds '../delta\\n'"),
    "weight below 0": (update(weight=-9.0), "its weight is -9"),
    "weight -0": (update(weight=-0.0), "its weight is -0"),
    "weight 0": (update(weight=0.0), "its weight is 0"),
    "weight NaN": (update(weight=math.nan), "its weight is nan"),
    "weight Inf": (update(weight=math.inf), "its weight is inf"),
    "weight 1e300": (update(weight=1e300), "its weight is 1e[+]300; for the 10 examples"),
    "weight just above": (update(weight=math.nextafter(10.0, 11.0)), "up to 10 is taken"),
    "weight of 400 digits": (update(weight=10**400), "weight is no number of 64 bits"),
    "weight that is true": (update(weight=True), "weight is no number"),
    "weight that is a text": (update(weight="10"), "weight is no number"),
    "weight that is an array": (update(weight=np.ones(3)), "weight is no number"),
    "weight that is complex": (update(weight=1j), "weight is no number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_is_refused_with_a_reason(name: str) -> None:
    bad, reason = BAD[name]
    said = refusal(bad)
    assert said is not None
    assert re.search(reason, said), said
    assert said.isprintable()


@pytest.mark.parametrize("weight", [10, 10.0, 1, 1e-3, 5e-324])
def test_a_good_update_is_taken(weight: float) -> None:
    assert refusal(update(weight=weight)) is None


def test_values_that_overflow_a_sum_are_finite() -> None:
    """Only what is in the update counts: large numbers are for robust reductions, not for admission."""
    assert refusal(update(delta=np.full(P, 3e38, np.float32))) is None


@given(weight=st.floats(), cap=st.floats(0.1, 1e6), examples=st.integers(1, 10**6))
def test_the_weight_is_above_0_and_at_most_the_cap_times_the_examples(weight: float, cap: float, examples: int) -> None:
    assert (refusal(update(weight=weight), examples, cap) is None) == (0 < weight <= cap * examples)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.complex_numbers(),
    st.lists(st.floats(), max_size=P),
    st.builds(
        lambda shape, kind: np.zeros(shape, kind),
        st.lists(st.integers(0, P), max_size=3),
        st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "O", "U3", "M8[s]", "V4", ">f4"]),
    ),
)  # fmt: skip


@settings(max_examples=250)
@given(items=st.dictionaries(st.sampled_from(["delta", "buffers", "weight", "x"]), anything))
def test_whatever_comes_is_refused_or_exactly_as_expected(items: dict[str, Any]) -> None:
    """Against a definition that is written out."""
    found = Update(**({"delta": np.ones(P, np.float32), "buffers": np.zeros(2, np.float32), "weight": 1.0} | items))
    delta, buffers, weight = found["delta"], found["buffers"], found["weight"]
    fine = (
        set(found) == {"delta", "buffers", "weight"}
        and isinstance(delta, np.ndarray) and delta.dtype == np.float32 and delta.shape == (P,)
        and bool(np.isfinite(delta).all())
        and isinstance(buffers, np.ndarray) and buffers.dtype == np.float32 and buffers.shape == (2,)
        and type(weight) in (int, float) and 0 < weight <= 10
    )  # fmt: skip
    if isinstance(delta, np.ndarray) and delta.dtype == np.dtype(">f4") and np.dtype(">f4") != np.float32:
        fine = False
    assert (refusal(found) is None) == fine


# Where it belongs --------------------------------------------------------------------------------------------------------

MISPLACED = {
    "another client's task": ({"client": "eve"}, "for a task of 'ada', not of 'eve'"),
    "another run": ({"run": "00" * 16}, "for the run"),
    "another task": ({"task": "../../x"}, "for the task '../../x'"),
    "a stale round": ({"round": 2}, "for round 2, and round 3 is awaited"),
    "a round to come": ({"round": 4}, "for round 4"),
    "round -1": ({"round": -1}, "for round -1"),
    "oversize": ({"nbytes": 4097}, "4097 bytes, but an update of this run has at most 4096"),
    "2**64 bytes": ({"nbytes": 2**64}, "at most 4096"),
    "no bytes": ({"nbytes": 0}, "0 bytes"),
    "fewer than none": ({"nbytes": -1}, "-1 bytes"),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_what_is_no_answer_to_the_task_is_refused(name: str) -> None:
    changed, reason = MISPLACED[name]
    said = misplaced(dataclasses.replace(CLAIM, **changed), AWAITED)
    assert said is not None
    assert reason in said
    assert misplaced(CLAIM, AWAITED) is None


@settings(max_examples=300)
@given(data=st.data())
def test_any_changed_field_of_a_claim_is_refused_on_one_short_line(data: Any) -> None:
    name = data.draw(st.sampled_from(["run", "task", "client", "round"]))
    value = data.draw(st.integers() if name == "round" else st.text(max_size=300))
    said = misplaced(dataclasses.replace(CLAIM, **{name: value}), AWAITED)
    assert (said is None) == (getattr(CLAIM, name) == value)
    assert said is None or (said.isprintable() and said.isascii() and len(said) < 1500)


@pytest.mark.parametrize("examples", [0, -1, MOST_EXAMPLES + 1, 10**400, 1e300, math.nan, math.inf, 1.0, True, None, "10", [1]])
def test_a_declaration_that_is_none(examples: Any) -> None:
    assert "examples; it must be a whole number" in str(declared(examples))
    assert declared(1) is None
    assert declared(MOST_EXAMPLES) is None


# The round goes on -------------------------------------------------------------------------------------------------------


def train(bad: dict[int, Update], clients: int = 4, rounds: int = 3) -> Coordinator:
    """A coordinator whose clients answer with known updates, and those in ``bad`` with bad ones; driven by hand."""
    rules = Rules(rounds=rounds, evaluate_every=0)
    algorithm = fw.FedAvg()
    coordinator = Coordinator(
        algorithm, algorithm.init(np.zeros(P, np.float32)), np.zeros(2, np.float32), clients, clients, Synchronous(), rules, 0
    )
    waiting = coordinator.handle(Begin())
    while waiting:
        effect = waiting.pop(0)
        if not isinstance(effect, (Train, Collect)):
            continue
        assert isinstance(effect, Train)
        for position, client in enumerate(effect.clients.tolist(), effect.first):
            draw = np.random.default_rng([effect.round, client])
            good = update(delta=draw.random(P, np.float32), buffers=draw.random(2, np.float32), weight=float(client + 1))
            sent = bad.get(client, good)
            reason = "absent" if sent is None else refusal(sent)
            if reason is not None:
                waiting += coordinator.handle(Failed(effect.round, position, reason, refused=sent is not None))
                continue
            partial = algorithm.reduce.add(algorithm.reduce.empty(), sent)
            tally = Tally(counted=1, examples=client + 1)
            waiting += coordinator.handle(Arrived(effect.round, position, position + 1, partial, tally))
    return coordinator


@pytest.mark.parametrize("name", BAD)
def test_the_model_equals_that_of_the_run_without_the_bad_client(name: str) -> None:
    with_it, without = train({2: BAD[name][0]}), train({2: None})  # type: ignore[dict-item]
    assert with_it.round == without.round == 3
    assert [record.model_hash for record in with_it.history] == [record.model_hash for record in without.history]
    assert [client for record in with_it.history for client, _ in record.refused] == [2, 2, 2]
    assert all(reason for record in with_it.history for _, reason in record.refused)
    assert train({}).history[-1].model_hash != without.history[-1].model_hash
