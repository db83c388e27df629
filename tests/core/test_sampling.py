# SPDX-License-Identifier: Apache-2.0
"""Samplings: who is asked, and with which probability, against exact enumeration and slow references."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedweave as fw
from fedweave import sampling
from fedweave.errors import UnknownName, UsageError
from fedweave.randomness import generator
from fedweave.sampling import Candidates

ALL = ["uniform", "available", "by-size", "poisson", "power-of-choice(d=8)", "oort"]


def moment(round: int = 1, population: int = 20, size: int = 5, seed: int = 0, **more: Any) -> Candidates:
    return Candidates(seed, round, population, size, **{"sizes": np.arange(1, population + 1), **more})


def drawn(text: str, times: int = 2000, **given: Any) -> list[tuple[int, ...]]:
    """The cohorts of many rounds."""
    one = sampling.sampling(text)
    return [tuple(one.select(moment(round, **given)).tolist()) for round in range(1, times + 1)]


def alike(cohorts: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    """Chi-square: each cohort comes as often as it should, and no other."""
    counts = [cohorts.count(cohort) for cohort in expected]
    assert sum(counts) == len(cohorts)
    probabilities = np.array(list(expected.values()))
    assert math.isclose(probabilities.sum(), 1)
    assert stats.chisquare(counts, probabilities * len(cohorts)).pvalue > 0.001


def included(cohorts: list[tuple[int, ...]], probabilities: Any) -> None:
    """Each client is in as many cohorts as its probability says, to within four and a half deviations."""
    probabilities = np.asarray(probabilities, float)
    counts = np.bincount([client for cohort in cohorts for client in cohort], minlength=len(probabilities))
    deviations = np.sqrt(len(cohorts) * probabilities * (1 - probabilities))
    assert (np.abs(counts - len(cohorts) * probabilities) <= 4.5 * deviations + 1e-9).all()


# What holds for all ------------------------------------------------------------------------------------------------------


@given(
    text=st.sampled_from(ALL),
    seed=st.integers(0, 99),
    round=st.integers(1, 50),
    size=st.integers(1, 8),
    draw=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 9), st.floats(0, 5) | st.none()), min_size=1, max_size=30
    ),
)
@settings(max_examples=300, deadline=None)
def test_cohorts_are_ascending_never_busy_and_full_if_they_can_be(text, seed, round, size, draw) -> None:
    online, busy = (np.array([row[i] for row in draw]) for i in (0, 1))
    sizes = np.array([row[2] for row in draw])
    losses = np.array([np.nan if row[3] is None else row[3] for row in draw], np.float32)
    given = Candidates(seed, round, len(draw), size, sizes, online, losses, losses * 2, busy)
    one = sampling.sampling(text)
    chosen = one.select(given)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all()
    assert not busy[chosen].any()
    assert np.array_equal(chosen, one.select(given))
    may = ~busy if text in ("uniform", "poisson") else ~busy & online
    may &= (sizes > 0) | (text not in ("by-size", "power-of-choice(d=8)"))
    assert may[chosen].all()
    if text != "poisson":
        assert len(chosen) == min(size, may.sum())


@pytest.mark.parametrize("text", ALL)
def test_a_round_has_its_own_draw_and_one_seed_one_result(text: str) -> None:
    one = sampling.sampling(text)
    cohorts = {tuple(one.select(moment(round, population=1000)).tolist()) for round in range(1, 20)}
    assert len(cohorts) == 19
    assert np.array_equal(one.select(moment(3)), one.select(moment(3)))
    assert not np.array_equal(one.select(moment(3, 1000)), one.select(moment(3, 1000, seed=1)))


def test_by_name() -> None:
    for text in [*ALL, "poisson(rate=0.01)", "oort(pace=30.0, explore=0.5)"]:
        assert sampling.spell(sampling.sampling(text)) == text
    assert sampling.sampling("by_size") == sampling.BySize()
    with pytest.raises(UnknownName, match="Did you mean 'uniform'"):
        sampling.sampling("unifrom")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poisson(rate=1.5)", r"rate is 1.5; it must be between 0 and 1"),
        ("power-of-choice(d=0)", "d is 0; it must be a whole number from 1 up"),
        ("power-of-choice(d=2.5)", "d is 2.5"),
        ("oort(pace=-1)", "pace is -1; it must be a number from 0 up"),
        ("oort(cut=2)", "cut is 2"),
    ],
)
def test_values_out_of_range(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampling.sampling(text)


def test_what_a_sampling_needs() -> None:
    for text in ("by-size", "power-of-choice(d=8)"):
        with pytest.raises(UsageError, match="how many examples each client holds"):
            sampling.sampling(text).select(moment(sizes=None))
    with pytest.raises(UsageError, match="d is 3, but 5 clients are asked; choose a d from 5 up"):
        sampling.PowerOfChoice(3).select(moment())


# Uniform, available ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**40), round=st.integers(0, 10**6), population=st.integers(1, 300), share=st.floats(0, 1))
@settings(deadline=None)
def test_uniform_is_a_choice_without_replacement_from_the_rounds_stream(seed, round, population, share) -> None:
    size = max(1, int(share * population))
    expected = np.sort(generator(seed, "cohort", round).choice(population, size, replace=False, shuffle=False))
    for text in ("uniform", "available"):
        for more in ({}, {"busy": np.zeros(population, bool)}):
            assert np.array_equal(sampling.sampling(text).select(Candidates(seed, round, population, size, **more)), expected)


def test_uniform_makes_every_cohort_as_likely() -> None:
    pairs = list(combinations(range(5), 2))
    alike(drawn("uniform", population=5, size=2), dict.fromkeys(pairs, 1 / len(pairs)))


def test_available_makes_every_cohort_of_those_online_as_likely() -> None:
    online = np.array([True, False, True, True, True, False])
    pairs = list(combinations([0, 2, 3, 4], 2))
    alike(drawn("available", population=6, size=2, online=online), dict.fromkeys(pairs, 1 / len(pairs)))
    assert drawn("available", 1, population=6, online=online) == [(0, 2, 3, 4)]
    assert drawn("available", 1, population=6, online=np.zeros(6, bool)) == [()]


# By size -----------------------------------------------------------------------------------------------------------------


def shares(sizes: list[int], count: int) -> list[float]:
    """Inclusion probabilities in proportion to size, the slow way: whoever has more than 1 gets 1, and all over again."""
    sure: set[int] = set()
    while True:
        left, total = count - len(sure), sum(n for k, n in enumerate(sizes) if k not in sure)
        found = [1.0 if k in sure else left * n / total if total else 0.0 for k, n in enumerate(sizes)]
        more = {k for k, p in enumerate(found) if p > 1}
        if not more:
            return found
        sure |= more


class EveryStart:
    """Stands in for a generator, to walk through all that it could have drawn in one order of the clients."""

    def __init__(self) -> None:
        self.first, self.total = 0, 1

    def permutation(self, clients: Any) -> Any:
        return np.random.default_rng(len(clients)).permutation(clients)

    def integers(self, total: int) -> int:
        self.total = total
        return self.first


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9), count=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_by_size_over_all_that_can_be_drawn_has_exactly_its_probabilities(sizes: list[int], count: int) -> None:
    held = sum(n > 0 for n in sizes)
    rng, cohorts = EveryStart(), []
    while rng.first < rng.total:
        chosen = sampling._in_proportion(np.array(sizes), count, rng)  # type: ignore[arg-type]
        assert len(set(chosen.tolist())) == min(count, held)
        cohorts.append(chosen)
        rng.first += 1
    found = np.bincount(np.concatenate(cohorts), minlength=len(sizes)) / len(cohorts)
    expected = [float(n > 0) for n in sizes] if held <= count else shares(sizes, count)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_by_size_as_it_is_drawn() -> None:
    sizes = [1, 2, 3, 4, 5, 6, 7, 100, 0]
    included(drawn("by-size", population=9, size=3, sizes=np.array(sizes)), shares(sizes, 3))


def test_by_size_of_equal_sizes_makes_every_cohort_as_likely() -> None:
    pairs = list(combinations(range(5), 2))
    alike(drawn("by-size", population=5, size=2, sizes=np.full(5, 7)), dict.fromkeys(pairs, 1 / len(pairs)))


def test_by_size_is_exact_for_large_data() -> None:
    """Whole numbers do not round: a billion examples a client, and a million of clients asked."""
    sizes = np.full(2000, 10**9)
    assert len(sampling.BySize().select(moment(population=2000, size=1000, sizes=sizes))) == 1000


# Poisson -----------------------------------------------------------------------------------------------------------------


def test_poisson_asks_each_client_on_its_own() -> None:
    every = [cohort for size in range(4) for cohort in combinations(range(3), size)]
    expected = {cohort: 0.3 ** len(cohort) * 0.7 ** (3 - len(cohort)) for cohort in every}
    found = drawn("poisson(rate=0.3)", population=3, online=np.zeros(3, bool))
    alike(found, expected)
    assert () in found


def test_poisson_rate_comes_from_the_cohort_unless_it_is_given() -> None:
    included(drawn("poisson", population=8, size=2), np.full(8, 0.25))
    assert drawn("poisson(rate=0)", 5) == [()] * 5
    assert drawn("poisson(rate=1)", 1, busy=np.arange(20) < 18) == [(18, 19)]


def test_poisson_does_not_depend_on_how_many_clients_there_are() -> None:
    few, many = (sampling.Poisson(0.2).select(moment(4, population)) for population in (50, 5000))
    assert np.array_equal(few, many[many < 50])


# Power of choice ---------------------------------------------------------------------------------------------------------


@given(
    losses=st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True),
    size=st.integers(1, 10),
    unknown=st.integers(0, 5),
)
@settings(deadline=None)
def test_power_of_choice_among_all_takes_the_unknown_and_then_the_largest(losses, size, unknown) -> None:
    unknown = min(unknown, len(losses))
    known = np.array(losses, np.float32)
    known[:unknown] = np.nan
    population = len(losses)
    chosen = sampling.PowerOfChoice(40).select(moment(population=population, size=size, losses=known)).tolist()
    slow = sorted(range(unknown, population), key=lambda k: -losses[k])[: max(0, size - unknown)]
    assert set(slow) == {k for k in chosen if k >= unknown}
    assert len(chosen) == min(size, population)


def test_power_of_choice_of_one_has_the_probabilities_of_a_draw_of_candidates() -> None:
    """With equal sizes the client of rank r is the best of d candidates in C(N - r, d - 1) of C(N, d) cases."""
    losses = np.array([3.0, 6.0, 1.0, 5.0, 2.0, 4.0], np.float32)
    population, d = 6, 3
    ranks = np.argsort(np.argsort(-losses)) + 1
    expected = {(k,): math.comb(population - int(r), d - 1) / math.comb(population, d) for k, r in enumerate(ranks)}
    possible = {cohort: p for cohort, p in expected.items() if p}
    found = drawn("power-of-choice(d=3)", population=population, size=1, losses=losses, sizes=np.full(6, 10))
    alike(found, possible)


def test_power_of_choice_draws_its_candidates_by_size() -> None:
    losses = np.zeros(6, np.float32)
    losses[2] = 1.0
    sizes = np.array([5, 5, 3, 4, 2, 1])
    found = drawn("power-of-choice(d=3)", population=6, size=2, losses=losses, sizes=sizes)
    probability = sum(2 in cohort for cohort in found) / len(found)
    assert probability == pytest.approx(3 * 3 / 20, abs=4.5 * math.sqrt(0.45 * 0.55 / len(found)))


def test_power_of_choice_breaks_ties_at_random() -> None:
    included(drawn("power-of-choice(d=4)", population=4, size=1, sizes=np.full(4, 3)), np.full(4, 0.25))


# Oort --------------------------------------------------------------------------------------------------------------------


@given(
    losses=st.lists(st.integers(1, 1000), min_size=8, max_size=30, unique=True), size=st.integers(1, 5), seed=st.integers(0, 99)
)
@settings(deadline=None)
def test_oort_that_only_exploits_takes_the_largest_utilities(losses, size, seed) -> None:
    known = np.array(losses, np.float32)
    sizes = np.random.default_rng(seed).permutation(len(losses)) + 1
    one = sampling.Oort(explore=0, least=0, cut=1)
    chosen = one.select(moment(population=len(losses), size=size, sizes=sizes, losses=known, seed=seed))
    utilities = np.minimum(sizes * known, np.quantile(sizes * known, 0.95))
    assert len(chosen) == size
    assert (utilities[chosen] >= np.sort(utilities)[-size]).all()


def test_oort_draws_what_it_exploits_in_proportion_to_utility() -> None:
    sizes, losses = np.array([10, 20, 30, 40]), np.ones(4, np.float32)
    # A cut of 0 makes everyone a candidate; the 95th percentile of 10, 20, 30, 40 is 38.5.
    found = drawn("oort(explore=0, least=0, cut=0)", population=4, size=1, sizes=sizes, losses=losses)
    alike(found, {(k,): u / 98.5 for k, u in enumerate([10, 20, 30, 38.5])})


def test_oort_explores_the_share_that_is_left_to_it() -> None:
    losses = np.where(np.arange(200) < 100, 1, np.nan).astype(np.float32)
    for round, share in ((1, 0.9), (11, 0.9 * 0.98**10), (500, 0.2)):
        chosen = sampling.Oort().select(moment(round, 200, 50, losses=losses))
        assert (chosen >= 100).sum() == math.floor(share * 50 + 0.5)
    included(drawn("oort", population=4, size=1), np.full(4, 0.25))


def test_oort_goes_without_what_is_not_there() -> None:
    tried = np.ones(6, np.float32)
    assert len(sampling.Oort().select(moment(population=6, losses=tried))) == 5
    assert len(sampling.Oort(explore=0, least=0).select(moment(population=6))) == 5
    none = moment(population=6, online=np.zeros(6, bool))
    assert len(sampling.Oort().select(none)) == 0


def test_oort_prefers_the_faster_of_two_that_have_as_much_to_learn_from() -> None:
    """A client that takes twice the pace has a quarter of the utility, so that it is drawn one time in five."""
    more = {"population": 2, "size": 1, "sizes": np.array([10, 10]), "losses": np.ones(2, np.float32)}
    durations = np.array([10.0, 20.0], np.float32)
    text = "oort(pace=10, explore=0, least=0, cut=0)"
    alike(drawn(text, durations=durations, **more), {(0,): 0.8, (1,): 0.2})
    alike(drawn(text, durations=np.array([10.0, np.nan], np.float32), **more), {(0,): 0.5, (1,): 0.5})
    # The median, 15 s, is the pace unless one is given: (15 / 20) ** 2 = 9 / 16.
    alike(drawn("oort(explore=0, least=0, cut=0)", durations=durations, **more), {(0,): 16 / 25, (1,): 9 / 25})


# In a run ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["by-size", "power-of-choice(d=9)", "oort(explore=0.5)"])
def test_a_run_that_is_resumed_asks_the_same_clients(tmp_path: Path, text: str) -> None:
    """What the samplings go by, losses and durations, is part of the checkpoint."""
    data = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(0.3), clients=12)
    world = "population(speed=lognormal(median=100, sigma=1))"
    given: dict[str, Any] = {"model": "logistic", "data": data, "cohort": 3, "sampling": text, "population": world}
    whole = fw.simulate(**given, rounds=8)
    fw.simulate(**given, rounds=4, out=tmp_path / "run")
    later = fw.resume(tmp_path / "run", rounds=8)
    assert [record.cohort for record in later.history] == [record.cohort for record in whole.history]
    assert later.model_hash == whole.model_hash


def test_a_run_asks_who_reported_the_largest_loss() -> None:
    """All of 6 clients are candidates. In a cohort of one the round's training loss is the client's."""
    data = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(0.3), clients=6)
    result = fw.simulate(model="logistic", data=data, cohort=1, rounds=14, sampling="power-of-choice(d=6)", evaluate_every=0)
    known: dict[int, float] = {}
    for record in result.history:
        (client,) = record.cohort
        assert client not in known if record.number <= 6 else client == max(known, key=lambda k: known[k])
        known[client] = record.metrics["train_loss"]
