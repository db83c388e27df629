# SPDX-License-Identifier: Apache-2.0
"""Attacks: their formulas against slow loops and another library, their memory, and whole runs under them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave import attacks
from fedweave.attacks import ALIE, ATTACKS, IPM, Attack, BitFlip, Gaussian, LabelFlip, Mimic, SignFlip, attack, hidden, spell
from fedweave.config import Config
from fedweave.driver.checks import byzantine_clients
from fedweave.errors import UnknownName, UsageError
from fedweave.reduce.base import Moment
from fedweave.store import Snapshot, pack, unpack
from fedweave.values import Arrays, State, Update

LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy}


def updates(seed: int, count: int, dtype: str, library: str, first_weight: int = 1) -> list[Update]:
    """Clients with a vector, a matrix and a number each."""
    draw = np.random.default_rng(seed)
    make = LIBRARIES[library]
    return [
        Update(
            delta=make(draw.normal(1.0, 2.0, 5).astype(dtype)),
            weight=first_weight + k,
            control=make(draw.normal(size=(2, 3)).astype(dtype)),
            h=float(draw.normal()),
        )
        for k in range(count)
    ]


def flat(update: Update) -> list[float]:
    """Everything but the weight, one number after another."""
    return [float(v) for name, value in update.items() if name != "weight" for v in np.asarray(value).reshape(-1)]


def forged(kind: Attack, own: list[Update], honest: list[Update], round: int = 1) -> list[Update]:
    return kind.forge(own, honest, Moment(3, round), Arrays())[0]


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "bad": st.integers(1, 3),
        "good": st.integers(1, 6),
        "dtype": st.sampled_from(["float32", "float64"]),
        "library": st.sampled_from(sorted(LIBRARIES)),
    }
)


def drawn(case: dict[str, Any]) -> tuple[list[Update], list[Update], float]:
    of = case["dtype"], case["library"]
    precision = 1e-5 if case["dtype"] == "float32" else 1e-12
    return updates(case["seed"] + 1, case["bad"], *of), updates(case["seed"], case["good"], *of, first_weight=40), precision


# The formulas ------------------------------------------------------------------------------------------------------------


def slow_mean(rows: list[list[float]]) -> list[float]:
    return [math.fsum(row[i] for row in rows) / len(rows) for i in range(len(rows[0]))]


def slow_alie(rows: list[list[float]], z: float) -> list[float]:
    sent = []
    for i, middle in enumerate(slow_mean(rows)):
        squares = math.fsum((row[i] - middle) ** 2 for row in rows)
        sent.append(middle - z * math.sqrt(squares / (len(rows) - 1)) if len(rows) > 1 else middle)
    return sent


@given(cases, st.floats(0.01, 100), st.floats(-3, 3))
@settings(max_examples=40)
def test_formulas(case: dict[str, Any], scale: float, z: float) -> None:
    own, honest, precision = drawn(case)
    rows = [flat(update) for update in honest]
    middle = slow_mean(rows)
    expected: list[tuple[Attack, list[list[float]]]] = [
        (BitFlip(), [[-value for value in flat(update)] for update in own]),
        (LabelFlip(), [flat(update) for update in own]),
        (SignFlip(scale), [[-scale * value for value in middle]] * len(own)),
        (IPM(scale), [[-scale * value for value in middle]] * len(own)),
        (ALIE(z), [slow_alie(rows, z)] * len(own)),
    ]
    for kind, wanted in expected:
        sent = forged(kind, own, honest)
        assert len(sent) == len(own)
        for update, values, before in zip(sent, wanted, own, strict=True):
            np.testing.assert_allclose(flat(update), values, rtol=precision, atol=precision * (1 + scale))
            assert [name for name in update if name != "weight"] == [name for name in before if name != "weight"]
            assert update.weight == before.weight
            assert update.delta.dtype == before.delta.dtype
            assert type(update.delta) is type(before.delta)
            assert update.control.shape == before.control.shape


@pytest.mark.parametrize("kind", [SignFlip(), IPM(), ALIE(), Mimic(), Gaussian(), BitFlip()], ids=lambda k: type(k).__name__)
def test_what_goes_in_is_left_as_it_is(kind: Attack) -> None:
    own, honest = updates(0, 2, "float64", "numpy"), updates(1, 3, "float64", "numpy")
    before = [flat(update) for update in own + honest]
    memory = Arrays()
    for round in range(1, 4):
        _, memory = kind.forge(own, honest, Moment(0, round), memory)
    assert [flat(update) for update in own + honest] == before


def test_clients_that_count_for_nothing_are_not_learnt_from() -> None:
    own, honest = updates(0, 2, "float64", "numpy"), updates(1, 4, "float64", "numpy")
    absent = honest[0].replace(delta=1e9 * honest[0].delta, weight=0)
    for kind in (SignFlip(), IPM(), ALIE(), ALIE(z=1.0), Mimic()):
        with_them, without = forged(kind, own, [absent, *honest]), forged(kind, own, honest)
        assert [flat(a) for a in with_them] == [flat(b) for b in without]
    idle = [update.replace(weight=0) for update in honest]
    assert flat(forged(SignFlip(), own, idle)[0]) == pytest.approx(flat(forged(SignFlip(), own, honest)[0]))


def normal_distribution(z: float) -> float:
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


@given(st.integers(2, 200), st.data())
def test_alie_stays_hidden_among_as_many_as_it_needs(n: int, data: st.DataObject) -> None:
    """Of the honest clients, so many as the bad ones need for a majority are further out than z."""
    f = data.draw(st.integers(1, n - 1))
    z = hidden(n, f)
    needed = max(n // 2 + 1 - f, 1)
    if n - f > needed:
        assert normal_distribution(z) == pytest.approx(1 - needed / (n - f), abs=1e-9)
    else:
        assert z == 0.0


def test_alie_takes_z_from_the_numbers_of_the_round() -> None:
    """25 clients, 5 of them bad: 8 of 20 must be further out, the 0.6 quantile of the normal distribution."""
    own, honest = updates(0, 5, "float64", "numpy"), updates(1, 20, "float64", "numpy")
    assert normal_distribution(hidden(25, 5)) == pytest.approx(0.6)
    assert flat(forged(ALIE(), own, honest)[0]) == flat(forged(ALIE(z=hidden(25, 5)), own, honest)[0])
    assert flat(forged(ALIE(), own, honest)[0]) != flat(forged(ALIE(z=hidden(25, 6)), own, honest)[0])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaussian_is_addressed_noise_of_its_width(library: str, dtype: str) -> None:
    make = LIBRARIES[library]
    own = [Update(delta=make(np.full(20_000, 7.0, dtype)), h=1.0, weight=k) for k in (3, 4)]
    honest = [own[0].replace(delta=own[0].delta * 100)]
    first, second = forged(Gaussian(sigma=2.0), own, honest)
    values = np.asarray(first.delta)
    assert abs(values.mean()) < 5 * 2.0 / math.sqrt(len(values))
    assert values.std() == pytest.approx(2.0, rel=0.03)
    assert abs(np.corrcoef(values, np.asarray(second.delta))[0, 1]) < 0.05
    assert first.delta.dtype == own[0].delta.dtype
    assert isinstance(first.h, float)
    assert (first.weight, second.weight) == (3, 4)
    again, other = forged(Gaussian(sigma=2.0), own, honest)[0], forged(Gaussian(sigma=2.0), own, honest, round=2)[0]
    assert flat(again) == flat(first) != flat(other)


@pytest.fixture
def byzfl() -> Iterator[Any]:
    """byzfl.attacks, without running byzfl/__init__.py, which imports torchvision and more."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("byzfl is not installed (pip install --no-deps byzfl)")
    before = set(sys.modules)
    package = ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    yield importlib.import_module("byzfl.attacks")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "byzfl":
            del sys.modules[name]


def test_against_byzfl(byzfl: Any) -> None:
    """ByzFL's A Little Is Enough adds tau standard deviations where ours, as the paper, takes z away."""
    own, honest = updates(0, 2, "float64", "numpy"), updates(1, 7, "float64", "numpy")
    rows = np.array([flat(update) for update in honest])
    pairs = [
        (SignFlip(), byzfl.SignFlipping()),
        (IPM(0.3), byzfl.InnerProductManipulation(tau=0.3)),
        (ALIE(z=-1.2), byzfl.ALittleIsEnough(tau=1.2)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(flat(forged(ours, own, honest)[0]), theirs(rows), rtol=1e-12)
    copied = forged(Mimic(), own, honest)[0]
    assert any(np.array_equal(byzfl.Mimic(epsilon=k)(rows), flat(copied)) for k in range(len(rows)))


# Mimic -------------------------------------------------------------------------------------------------------------------


class SlowMimic:
    """The published recursion with lists of numbers; z begins where ours does."""

    def __init__(self, warmup: int, fixed: bool) -> None:
        self.warmup, self.fixed, self.t, self.target = warmup, fixed, 0, 0

    def __call__(self, rows: list[list[float]], start: list[float]) -> int:
        learning = self.t < self.warmup
        if learning:
            now = slow_mean(rows)
            self.mu = now if self.t == 0 else [(self.t * m + v) / (1 + self.t) for m, v in zip(self.mu, now, strict=True)]
            z = start if self.t == 0 else self.z
            spread = [0.0] * len(z)
            for row in rows:
                apart = [v - m for v, m in zip(row, self.mu, strict=True)]
                along = math.fsum(a * b for a, b in zip(apart, z, strict=True))
                spread = [s + along * a for s, a in zip(spread, apart, strict=True)]
            self.z = self.unit([(self.t * a + b) / (1 + self.t) for a, b in zip(z, self.unit(spread), strict=True)])
        if learning or not self.fixed:
            along = [math.fsum(a * b for a, b in zip(row, self.z, strict=True)) for row in rows]
            self.target = along.index(max(along))
        self.t += 1
        return self.target

    @staticmethod
    def unit(values: list[float]) -> list[float]:
        length = math.sqrt(math.fsum(v * v for v in values))
        return [v / length for v in values]


@given(cases, st.integers(1, 4), st.booleans())
@settings(max_examples=30)
def test_mimic_is_the_published_recursion(case: dict[str, Any], warmup: int, fixed: bool) -> None:
    own, _, _ = drawn(case)
    kind, slow, memory = Mimic(warmup, fixed), SlowMimic(warmup, fixed), Arrays()
    start = np.random.default_rng(0).normal(size=12).tolist()
    with pytest.MonkeyPatch.context() as patch:
        make = LIBRARIES[case["library"]]
        patch.setattr(attacks, "_noise", lambda like, sigma, draw: make(np.array(start)))
        for round in range(1, 7):
            # Two clients at least: a single one has no direction.
            honest = updates(case["seed"] + 10 * round, case["good"] + 1, case["dtype"], case["library"])
            sent, memory = kind.forge(own, honest, Moment(0, round), memory)
            wanted = slow([flat(update) for update in honest], start)
            assert [flat(update) for update in sent] == [flat(honest[wanted])] * len(own)
            assert [update.weight for update in sent] == [update.weight for update in own]


def test_mimic_finds_the_client_that_differs() -> None:
    """All honest clients but one agree: copied is that one, or one of the others on the far side of the mean; never a mix."""
    draw = np.random.default_rng(0)
    memory, chosen = Arrays(), []
    for round in range(1, 20):
        honest = [Update(delta=draw.normal(0, 0.1, 50) + (5.0 if k == 3 else 0.0), weight=1) for k in range(6)]
        sent, memory = Mimic(warmup=10).forge(honest[:1], honest, Moment(0, round), memory)
        chosen.append(next(k for k in range(6) if np.array_equal(sent[0].delta, honest[k].delta)))
    far = np.ones(50) / math.sqrt(50)
    assert abs(float(memory["z of delta"] @ far)) > 0.99
    assert chosen.count(3) == len(chosen) or 3 not in chosen


def test_mimic_stays_with_one_client_while_their_number_stays() -> None:
    kind, memory = Mimic(warmup=1, fixed=True), Arrays()
    honest = updates(1, 5, "float64", "numpy")
    sent, memory = kind.forge(honest[:1], honest, Moment(0, 1), memory)
    place = memory["target of delta+control+h"]
    assert flat(sent[0]) == flat(honest[place])
    turned = [update.map(lambda v: -v).replace(weight=1) for update in honest]
    sent, memory = kind.forge(honest[:1], turned, Moment(0, 2), memory)
    assert flat(sent[0]) == flat(turned[place])
    fewer = turned[:place] + turned[place + 1 :]
    sent, _ = kind.forge(honest[:1], fewer, Moment(0, 3), memory)
    assert flat(sent[0]) in [flat(update) for update in fewer]


def test_mimic_with_clients_that_all_agree() -> None:
    """No direction is larger than another: no division by zero."""
    one = updates(1, 1, "float32", "torch")
    memory = Arrays()
    for round in (1, 2, 3):
        sent, memory = Mimic().forge(one, one * 4, Moment(0, round), memory)
        assert flat(sent[0]) == flat(one[0])
    assert all(math.isfinite(v) for v in memory["z of delta+control+h"].tolist())


def test_mimic_learns_the_two_conversations_of_a_round_apart() -> None:
    """Mime's clients first send gradients, then changes: the direction of one is nothing to the other."""
    first = [Update(gradient=update.delta, weight=1) for update in updates(1, 4, "float64", "numpy")]
    second = updates(2, 4, "float64", "numpy")
    alone, both = Arrays(), Arrays()
    for round in (1, 2, 3):
        _, both = Mimic().forge(first[:1], first, Moment(0, round), both)
        a, both = Mimic().forge(second[:1], second, Moment(0, round), both)
        b, alone = Mimic().forge(second[:1], second, Moment(0, round), alone)
        assert flat(a[0]) == flat(b[0])
    assert {name for name in both if name.endswith("of gradient")}


@pytest.mark.parametrize("library", LIBRARIES)
def test_memory_survives_a_checkpoint_to_the_bit(library: str) -> None:
    kind = Mimic(warmup=4)
    kept, straight = Arrays(), Arrays()
    differs = False
    for round in range(1, 6):
        honest = updates(round, 5, "float32", library)
        a, straight = kind.forge(honest[:2], honest, Moment(0, round), straight)
        b, kept = kind.forge(honest[:2], honest, Moment(0, round), kept)
        assert [flat(update) for update in a] == [flat(update) for update in b]
        packed = pack(Snapshot(State(weights=honest[0].delta), honest[0].delta, kept, {}))
        kept = unpack(packed, LIBRARIES[library]).memory
        forgetful, _ = kind.forge(honest[:2], honest, Moment(0, round), Arrays())
        differs |= flat(forgetful[0]) != flat(a[0])
    assert {k: np.asarray(v).tolist() for k, v in kept.items()} == {k: np.asarray(v).tolist() for k, v in straight.items()}
    assert differs, "the memory decides nothing here, so that this test could not fail"


# By name -----------------------------------------------------------------------------------------------------------------

ALL = [
    *(kind() for kind in ATTACKS.values()),
    *(SignFlip(2.5), Gaussian(0.01), IPM(100.0), ALIE(1.5), Mimic(3, fixed=True)),
]


@pytest.mark.parametrize("value", ALL, ids=spell)
def test_round_trip_of_the_text(value: Attack) -> None:
    assert attack(spell(value)) == value
    assert attack(value) is value


def test_registry() -> None:
    assert list(ATTACKS) == ["bit-flip", "label-flip", "sign-flip", "gaussian", "ipm", "alie", "mimic"]
    assert attack("Bit_Flip") == BitFlip()
    assert attack(None) is None
    for kind in ATTACKS.values():
        assert kind.paper
        assert dataclasses.is_dataclass(kind)
        assert (kind.__doc__ or "").split("\n")[0].endswith(".")
    own = updates(0, 2, "float64", "numpy")
    assert Attack().forge(own, own, Moment(), Arrays()) == (own, Arrays())
    assert Attack().flipped(own[0].delta, 10) is own[0].delta


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imp", "Did you mean 'ipm'"),
        ("ipm(eps=1)", "epsilon"),
        ("ipm(epsilon=0)", "epsilon is 0; it must be a number above 0"),
        ("sign-flip(scale=-1)", "scale is -1"),
        ("gaussian(sigma='wide')", "sigma is 'wide'"),
        ("alie(z='far')", "z is 'far'; it must be a number, or None"),
        ("alie(z=True)", "z is True"),
        ("mimic(warmup=0)", "warmup is 0; it must be a whole number from 1 up"),
        ("mimic(fixed=1)", "fixed is 1"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        attack(text)


# Labels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_labels_are_turned_round(make: Any) -> None:
    labels = make(np.array([[0, 9, 3], [-100, 5, 4]]))
    assert LabelFlip().flipped(labels, 10).tolist() == [[9, 0, 6], [-100, 4, 5]]
    assert LabelFlip().flipped(labels, 10).dtype == labels.dtype
    with pytest.raises(UsageError, match="needs class labels"):
        LabelFlip().flipped(labels, None)


# Whole runs --------------------------------------------------------------------------------------------------------------


def digits(clients: int = 10) -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.IID(), clients=clients, seed=0)


def begin(**options: Any) -> fw.Result:
    arguments = {
        "model": "logistic",
        "data": digits(),
        "local": fw.Local(lr=0.1, steps=3),
        "cohort": 8,
        "rounds": 5,
        "threads": 1,
    }
    return fw.simulate(**(arguments | options))


def accuracy(result: fw.Result) -> float:
    return result.history[-1].metrics["accuracy"]


def test_clients_that_all_flip_learn_the_flipped_labels() -> None:
    data = digits()
    result = begin(data=data, attack="label-flip", byzantine=1.0, rounds=30)
    with torch.no_grad():
        said = result.module()(torch.from_numpy(np.asarray(data.x_test))).argmax(1).numpy()
    assert (said == 9 - np.asarray(data.y_test)).mean() > 0.8
    assert accuracy(result) < 0.1


def test_an_attack_reaches_the_model_and_the_seed_says_whom() -> None:
    plain = begin()
    attacked = begin(attack="ipm(epsilon=0.1)", byzantine=2)
    assert attacked.model_hash != plain.model_hash
    assert attacked.model_hash == begin(attack=IPM(0.1), byzantine=0.2).model_hash
    assert (attacked.config.attack, attacked.config.byzantine) == ("ipm", 2)
    assert attacked.model_hash != begin(attack="ipm", byzantine=3).model_hash


def test_the_aggregate_under_ipm_is_the_formula() -> None:
    """Every client holds as many examples, so the model moves by (good - epsilon bad) / n times the honest mean; the good
    clients' alone is what a run of the same seed without the attack, but with them only, would give."""
    data = fw.data.from_clients([(np.ones((4, 2), np.float32) * (k + 1), np.array([0, 1, 0, 1])) for k in range(6)])
    same = {"model": "logistic", "data": data, "local": fw.Local(lr=0.1, steps=1, batch_size=None), "cohort": 6, "rounds": 1}
    same |= {"evaluate_every": 0, "threads": 1}
    start = fw.simulate(**(same | {"rounds": 0})).weights
    attacked = fw.simulate(**same, attack="ipm(epsilon=0.5)", byzantine=2).weights
    bad = byzantine_clients(Config.make({"byzantine": 2, "attack": "ipm", "seed": 0}), IPM(0.5), 6)
    good = [k for k in range(6) if k not in bad]
    few = fw.data.from_clients([data.client(k) for k in good])
    alone = fw.simulate(**(same | {"data": few, "cohort": 4, "initial": start})).weights
    for name, before in start.items():
        np.testing.assert_allclose(attacked[name] - before, (4 - 0.5 * 2) / 6 * (alone[name] - before), atol=1e-6)


def test_the_median_withstands_what_breaks_the_mean() -> None:
    under = {"attack": "sign-flip(scale=100)", "byzantine": 2, "rounds": 20, "cohort": 10}
    assert accuracy(begin(**under, algorithm="fedavg(reduce=median)")) > 0.7
    broken = begin(**under)
    assert broken.status == "diverged" or accuracy(broken) < 0.5


@pytest.mark.parametrize("kind", ["mimic(warmup=6)", "mimic(warmup=2, fixed=True)", "gaussian(sigma=0.01)"])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    under = {"attack": kind, "byzantine": 3, "cohort": 10, "rounds": 7, "algorithm": "fedavg(reduce=median)"}
    whole = begin(**under)
    begin(**(under | {"rounds": 3}), out=tmp_path / "run")
    resumed = fw.resume(tmp_path / "run", rounds=7)
    assert resumed.model_hash == whole.model_hash
    assert [r.model_hash for r in resumed.history] == [r.model_hash for r in whole.history]


@pytest.mark.parametrize("options", [{"attack": "ipm"}, {"byzantine": 2}, {"attack": "ipm", "byzantine": 0.0}])
def test_an_attack_and_bad_clients_come_together(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give both, or neither"):
        begin(**options)


@pytest.mark.parametrize(
    ("options", "said"), [({"byzantine": 11}, "11"), ({"byzantine": 1.5}, "1.5"), ({"byzantine": -1}, "-1")]
)
def test_no_more_bad_clients_than_there_are(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        begin(attack="ipm", **options)


def test_unknown_attack_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(UnknownName, match="There is no attack called 'flipp'"):
        begin(attack="flipp", byzantine=2)


# The experiment's script -------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "reproductions" / "robustness.py"
    spec = importlib.util.spec_from_file_location("robustness_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "robustness_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "normalised", lambda: fw.data.load("digits"))
    return module


def test_the_script_knows_whom_the_simulator_makes_bad(script: ModuleType) -> None:
    for seed in range(5):
        config = Config.make({"byzantine": script.BAD, "attack": "ipm", "seed": seed})
        assert script.bad_clients(seed) == byzantine_clients(config, IPM(), script.GOOD + script.BAD)


def test_the_script_deals_by_label_to_the_good_and_at_random_to_the_bad(script: ModuleType) -> None:
    split = script.split(1)
    bad = script.bad_clients(1)
    good = [k for k in range(25) if k not in bad]
    assert sorted(np.concatenate([split.indices(k) for k in good]).tolist()) == list(range(len(split.data)))
    assert all(len(np.unique(split.client(k)[1])) <= 2 for k in good)
    assert all(len(np.unique(split.client(k)[1])) > 5 for k in bad)


def test_bad_clients_without_momentum(script: ModuleType) -> None:
    """From the running sums m_t = 0.9 m_{t-1} + d_t that they would have sent, d_t is found again, and forged."""
    draw = np.random.default_rng(0)
    sums, memory = [np.zeros(4), np.zeros(4)], Arrays()
    kind = script.Plain(then=BitFlip())
    for round in range(1, 5):
        fresh = [draw.normal(size=4) for _ in sums]
        sums = [0.9 * m + d for m, d in zip(sums, fresh, strict=True)]
        own = [Update(delta=m, weight=1) for m in sums]
        sent, memory = kind.forge(own, own, Moment(0, round), memory)
        np.testing.assert_allclose([update.delta for update in sent], [-d for d in fresh], atol=1e-12)
    assert script.Plain().flips_labels
    assert script.Plain().flipped(np.array([0, 1]), 3).tolist() == [2, 1]


def test_the_script_runs_cells_once_and_prints_them(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    names = ["median-bucketing/label-flip", "krum/mimic"]
    common = ["--seeds", "0", "--rounds", "30", "--results", str(results)]

    def main(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robustness.py", *arguments, *common])
        script.main()
        return capsys.readouterr().out

    main(*names, "--part", "1/2")
    assert len(results.read_text().splitlines()) == 1
    main(*names)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == sorted(names)
    assert main(*names, "--list").count("\n") == 50
    assert len(results.read_text().splitlines()) == 2
    printed = main("--table")
    for line in lines:
        assert f"{line['accuracy']:.1f} (" in printed
    assert len({line["model_hash"] for line in lines}) == 2
    with pytest.raises(SystemExit):
        main("medians/ipm")
