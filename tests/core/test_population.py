# SPDX-License-Identifier: Apache-2.0
"""Devices: what is drawn against SciPy's distributions, when they are online against closed forms and a slow walk, and
recordings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedweave as fw
from fedweave import population
from fedweave.errors import DataError, UnknownName, UsageError
from fedweave.population import Diurnal, Fate, Mixture, Sessions, Trace
from fedweave.population.availability import TICKS
from fedweave.population.distributions import Exponential, LogNormal, Pareto, Uniform, Zipf
from fedweave.randomness import generator, uniforms

COLUMNS = ("speed", "up", "down", "latency", "dropout", "never_starts", "late", "garbage")

DISTRIBUTIONS: list[tuple[Any, Any]] = [
    (LogNormal(100, 1.0), stats.lognorm(1.0, scale=100)),
    (LogNormal(3, 0.2), stats.lognorm(0.2, scale=3)),
    (Uniform(2, 9), stats.uniform(2, 7)),
    (Exponential(40), stats.expon(scale=40)),
    (Pareto(5, 1.5), stats.pareto(1.5, scale=5)),
]

UNEVEN = fw.Population(
    speed=LogNormal(100, 1.0),
    up=Pareto(1e4, 2),
    down=Uniform(1e5, 1e6),
    latency=Exponential(0.2),
    availability=Diurnal(share=Uniform(0.1, 0.5)),
    dropout=Uniform(0, 0.2),
    never_starts=0.1,
    late=0.2,
    garbage=0.1,
    lateness=Uniform(2, 10),
    jitter=LogNormal(1, 0.3),
)

TWO = Mixture(
    [fw.Population(speed=20, availability=Diurnal(share=0.25), late=0.5, lateness=3), fw.Population(speed=LogNormal(500, 0.5))],
    [0.2, 0.8],
)


# Random numbers by address -----------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**64),
    purpose=st.text(max_size=9),
    round=st.integers(0, 2**63 - 1),
    clients=st.lists(st.integers(0, 2**63 - 1), max_size=9),
)
def test_uniforms_are_what_each_clients_own_generator_gives(seed, purpose, round, clients) -> None:
    found = uniforms(seed, purpose, round, np.array(clients, np.int64))
    assert found.shape == (4, len(clients))
    for column, client in zip(found.T, clients, strict=True):
        assert np.array_equal(column, generator(seed, purpose, round, client).random(4))


@given(seed=st.integers(0, 99), few=st.integers(1, 50), more=st.integers(0, 50), kind=st.sampled_from([UNEVEN, TWO]))
@settings(max_examples=30, deadline=None)
def test_a_device_does_not_depend_on_how_many_there_are(seed, few, more, kind) -> None:
    small, large = kind.draw(seed, few), kind.draw(seed, few + more)
    for name in (*COLUMNS, "kind"):
        assert np.array_equal(getattr(small, name), getattr(large, name)[:few])
    for at in (0.0, 3.5e4, 1e6):
        assert np.array_equal(small.available(at), large.available(at)[:few])


@given(seed=st.integers(0, 99), task=st.integers(0, 2**40), clients=st.permutations(list(range(12))), asked=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_fate_does_not_depend_on_who_else_is_asked(seed, task, clients, asked) -> None:
    devices = UNEVEN.draw(1, 12)
    everyone, some = devices.fates(seed, task, np.arange(12)), devices.fates(seed, task, np.array(clients[:asked]))
    for name in ("kind", "part", "factor"):
        assert np.array_equal(getattr(some, name), getattr(everyone, name)[clients[:asked]])


def test_an_attribute_does_not_depend_on_another() -> None:
    plain, other = fw.Population(speed=LogNormal(100, 1.0)).draw(3, 500), UNEVEN.draw(3, 500)
    assert np.array_equal(plain.speed, other.speed)
    assert abs(np.corrcoef(other.speed, other.down)[0, 1]) < 0.2
    assert not np.array_equal(plain.speed, fw.Population(speed=LogNormal(100, 1.0)).draw(4, 500).speed)


# Distributions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), DISTRIBUTIONS, ids=lambda value: type(value).__name__)
def test_distributions_are_scipys(ours: Any, theirs: Any) -> None:
    drawn = fw.Population(speed=ours).draw(5, 20_000).speed
    assert stats.kstest(drawn.astype(np.float64), theirs.cdf).pvalue > 0.01
    u = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(ours.quantile(u), theirs.ppf(u), rtol=1e-9)
    low, high = ours.support()
    assert (low, high) == pytest.approx(theirs.support())


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.5])
def test_zipf_is_scipys(exponent: float) -> None:
    drawn = fw.Population(speed=Zipf(exponent, 12, unit=2.5)).draw(5, 20_000).speed / 2.5
    ranks = np.arange(1, 13)
    theirs = ranks**-exponent / (ranks**-exponent).sum()
    assert stats.chisquare(np.bincount(drawn.astype(int), minlength=13)[1:], 20_000 * theirs).pvalue > 0.01
    if exponent:
        np.testing.assert_allclose(theirs, stats.zipfian(exponent, 12).pmf(ranks))
    edges = Zipf(1.0, 3).quantile(np.array([2.0**-54, 0.54, 0.55, 1 - 2.0**-53]))
    assert edges.tolist() == [1, 1, 2, 3]


def test_extreme_draws_stay_finite_and_above_zero() -> None:
    for speed in (LogNormal(1, 60), Pareto(1, 0.01), Exponential(1e-40)):
        drawn = fw.Population(speed=speed).draw(0, 20_000).speed
        assert np.isfinite(drawn).all()
        assert (drawn > 0).all()


def test_a_client_of_a_class_has_what_it_would_have_if_all_were_of_that_class() -> None:
    devices = TWO.draw(2, 500)
    for number, kind in enumerate(TWO.kinds):
        alone, own = kind.draw(2, 500), devices.kind == number
        assert np.array_equal(devices.speed[own], alone.speed[own])
        for at in (0.0, 4e4):
            assert np.array_equal(devices.available(at)[own], alone.available(at)[own])
            assert np.array_equal(devices.changes(at)[own], alone.changes(at)[own])


def test_classes_of_devices_have_their_shares_and_distributions() -> None:
    devices = TWO.draw(2, 20_000)
    assert stats.binomtest(int((devices.kind == 0).sum()), 20_000, 0.2).pvalue > 0.01
    assert (devices.speed[devices.kind == 0] == 20).all()
    fast = devices.speed[devices.kind == 1].astype(np.float64)
    assert stats.kstest(fast, stats.lognorm(0.5, scale=500).cdf).pvalue > 0.01
    assert devices.available(1e5)[devices.kind == 1].all()
    slow = devices.available(1e5)[devices.kind == 0]
    assert stats.binomtest(int(slow.sum()), len(slow), 0.25).pvalue > 0.01
    fates = devices.fates(0, 1, np.arange(20_000))
    assert set(np.unique(fates.factor[devices.kind == 0])) == {1, 3}
    assert (fates.factor[devices.kind == 1] == 1).all()


# What a task takes and what becomes of it --------------------------------------------------------------------------------


def test_seconds_are_latency_and_bytes_and_examples() -> None:
    devices = fw.Population(speed=50, up=1000, down=4000, latency=0.5).draw(0, 3)
    times = devices.seconds(np.array([0, 2]), [100, 25], 8000, [500, 2000])
    np.testing.assert_allclose(times.down, [2.5, 2.5])
    np.testing.assert_allclose(times.compute, [2, 0.5])
    np.testing.assert_allclose(times.up, [1, 2.5])
    np.testing.assert_allclose(times.scaled(np.array([1.0, 2.0])).total, [5.5, 11])


def test_the_default_is_ideal() -> None:
    devices = fw.Population().draw(0, 4)
    clients = np.arange(4)
    assert (devices.seconds(clients, 1e9, 1e9, 1e9).total == 0).all()
    assert (devices.seconds(clients, 0).total == 0).all()
    assert devices.available(1e9).all()
    assert devices.available(7, np.array([1, 1])).tolist() == [True, True]
    assert devices.next_change(0) == math.inf
    fates = devices.fates(0, 1, clients)
    assert fates.answers.all()
    assert (fates.part == 1).all()
    assert (fates.factor == 1).all()


def test_fates_have_their_probabilities() -> None:
    kind = fw.Population(
        never_starts=0.1, dropout=0.2, late=0.15, garbage=0.05, lateness=Uniform(2, 10), jitter=Exponential(1)
    ).draw(0, 20_000)
    fates = kind.fates(3, 8, np.arange(20_000))
    counts = np.bincount(fates.kind, minlength=5)
    expected = {Fate.OK: 0.5, Fate.NEVER_STARTS: 0.1, Fate.DIES: 0.2, Fate.LATE: 0.15, Fate.GARBAGE: 0.05}
    assert stats.chisquare(counts, [20_000 * expected[fate] for fate in Fate]).pvalue > 0.01
    dies, late = fates.kind == Fate.DIES, fates.kind == Fate.LATE
    assert stats.kstest(fates.part[dies], stats.uniform.cdf).pvalue > 0.01
    assert (fates.part[~dies] == 1).all()
    assert stats.kstest(fates.factor[~late], stats.expon.cdf).pvalue > 0.01
    # A product of independent factors has the product of their means: 6 times 1.
    assert fates.factor[late].mean() == pytest.approx(6, abs=4.5 * fates.factor[late].std() / math.sqrt(late.sum()))
    assert fates.answers.sum() == 20_000 - counts[Fate.NEVER_STARTS] - counts[Fate.DIES]
    again = kind.fates(3, 9, np.arange(20_000))
    assert stats.contingency.crosstab(fates.kind, again.kind).count.shape == (5, 5)
    assert stats.chi2_contingency(stats.contingency.crosstab(fates.kind, again.kind).count).pvalue > 0.01
    assert Fate.NEVER_STARTS.word == "never starts"


def test_certain_fates() -> None:
    for name, fate in (
        ("never_starts", Fate.NEVER_STARTS),
        ("dropout", Fate.DIES),
        ("late", Fate.LATE),
        ("garbage", Fate.GARBAGE),
    ):
        fates = population.population(f"population({name}=1)").draw(0, 300).fates(0, 1, np.arange(300))
        assert (fates.kind == fate).all()
    assert (fates.part == 1).all()


# When they are online ----------------------------------------------------------------------------------------------------


@given(share=st.floats(0, 1), spread=st.floats(0, 1), seed=st.integers(0, 9), day=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_share_of_the_day_that_a_client_is_online_is_exact(share, spread, seed, day) -> None:
    devices = fw.Population(availability=Diurnal(period=2, share=share, spread=spread)).draw(seed, 5)
    ticks = np.array([devices.available(2 * day + i / TICKS) for i in range(2 * TICKS)])
    assert (ticks.sum(axis=0) == round(share * 2 * TICKS)).all()


@given(share=st.floats(0.05, 0.95), spread=st.floats(0.05, 1), hour=st.floats(0, 24))
@settings(max_examples=40, deadline=None)
def test_how_many_are_online_at_an_hour_is_the_closed_form(share: float, spread: float, hour: float) -> None:
    """A client that begins at b, uniform over [0, spread], is online at t if b lies in [t - share, t], around the clock."""
    clients, t = 4000, hour / 24
    devices = fw.Population(availability=Diurnal(share=share, spread=spread)).draw(1, clients)
    part = sum(max(0.0, min(t + turn, spread) - max(t + turn - share, 0.0)) for turn in (0, 1)) / spread
    assert devices.online(hour * 3600).size / clients == pytest.approx(part, abs=5 * math.sqrt(0.25 / clients))


@given(share=st.floats(0, 1), seed=st.integers(0, 50), now=st.integers(0, 5 * TICKS))
@settings(max_examples=60, deadline=None)
def test_changes_are_those_that_a_slow_walk_finds(share: float, seed: int, now: int) -> None:
    devices = fw.Population(availability=Diurnal(period=1, share=share)).draw(seed, 3)
    online = np.array([devices.available((now + i) / TICKS) for i in range(TICKS + 1)])
    for client, found in enumerate(devices.changes(now / TICKS)):
        other = np.flatnonzero(online[:, client] != online[0, client])
        assert found == ((now + other[0]) / TICKS if len(other) else math.inf)
    assert devices.next_change(now / TICKS, np.array([1])) == devices.changes(now / TICKS)[1]


def test_waiting_for_the_next_change_always_ends() -> None:
    devices = fw.Population(availability=Diurnal(period=86400, share=0.01)).draw(0, 20)
    at, seen = 0.1, []
    while len(seen) < 60:
        later = devices.next_change(at)
        assert later > at
        assert not np.array_equal(devices.available(later), devices.available(at))
        assert np.array_equal(devices.available(math.nextafter(later, 0)), devices.available(at))
        seen.append(at := later)
    assert at > 86400


Session = tuple[int, int, int]


@st.composite
def recordings(draw: Callable[..., Any]) -> list[Session]:
    """(client, first tick, end) without overlaps; some touch."""
    sessions = []
    for client in range(draw(st.integers(1, 3))):
        edges = sorted(draw(st.sets(st.sampled_from([0, 48]) | st.integers(0, 48), min_size=2, max_size=8)))
        keep = draw(st.lists(st.booleans(), min_size=len(edges) - 1, max_size=len(edges) - 1))
        sessions += [(client, a, b) for a, b, used in zip(edges, edges[1:], keep, strict=False) if used]
    return draw(st.permutations(sessions)) or [(0, 1, 2)]


@given(sessions=recordings(), repeat=st.booleans(), now=st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_recorded_sessions_are_those_that_a_slow_walk_finds(tmp_path_factory, sessions, repeat, now) -> None:
    path = tmp_path_factory.mktemp("trace") / "sessions.csv"
    path.write_text("offline,client,online\n" + "".join(f"{b},{k},{a}\n" for k, a, b in sessions))
    period = 48 if repeat else None
    recorded = max(k for k, _, _ in sessions) + 1
    devices = fw.Population(availability=Sessions(str(path), period)).draw(0, recorded)

    def online(client: int, at: int) -> bool:
        return any(k == client and a <= (at % 48 if repeat else at) < b for k, a, b in sessions)

    assert devices.available(now).tolist() == [online(k, now) for k in range(recorded)]
    for client, found in enumerate(devices.changes(now).tolist()):
        later = next((t for t in range(now + 1, now + 100) if online(client, t) != online(client, t - 1)), math.inf)
        assert found == later
        assert devices.changes(now, np.array([client])).tolist() == [found]
        assert devices.available(now, np.array([client])).tolist() == [online(client, now)]


def test_sampled_devices_have_their_own_sessions(tmp_path: Path) -> None:
    """Device r of the recordings has speed r + 1 and is online from r to r + 1."""
    (tmp_path / "devices.csv").write_text("speed\n" + "".join(f"{r + 1}\n" for r in range(10)))
    (tmp_path / "sessions.csv").write_text("client,online,offline\n" + "".join(f"{r},{r},{r + 1}\n" for r in range(10)))
    sessions = Sessions(str(tmp_path / "sessions.csv"), period=10, sample=True)
    devices = Trace(str(tmp_path / "devices.csv"), sample=True, availability=sessions).draw(0, 5000)
    for second in range(10):
        assert set(devices.speed[devices.online(second)]) == {second + 1}
    assert stats.chisquare(np.bincount(devices.speed.astype(int))[1:]).pvalue > 0.01


# Recordings as files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_devices_that_are_saved_are_read_back_to_the_same_bits(tmp_path: Path, suffix: str) -> None:
    path, devices = tmp_path / f"devices{suffix}", UNEVEN.draw(7, 200)
    devices.save(path)
    found = Trace(str(path), lateness=Uniform(2, 10), jitter=LogNormal(1, 0.3)).draw(7, 200)
    for name in COLUMNS:
        assert np.array_equal(getattr(found, name), getattr(devices, name))
    ours, theirs = (one.fates(1, 2, np.arange(200)) for one in (devices, found))
    assert np.array_equal(ours.kind, theirs.kind)
    assert np.array_equal(ours.factor, theirs.factor)
    assert len(Trace(str(path)).draw(0, 50)) == 50


def test_columns_and_rows_come_in_any_order_and_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_text("latency, client,speed\n0.5,1,20\n\n0.25,0,inf\n")
    devices = Trace(str(path)).draw(0, 2)
    assert devices.speed.tolist() == [math.inf, 20]
    assert devices.latency.tolist() == [0.25, 0.5]
    assert devices.up.tolist() == [math.inf, math.inf]
    assert devices.dropout.tolist() == [0, 0]


BAD_DEVICES = [
    ("speed,wings\n1,2\n", "its column 2 is called 'wings'. Known: client, speed"),
    ("sped\n1\n", "its column 1 is called 'sped'. Did you mean 'speed'?"),
    ("speed,speed\n1,2\n", "its columns 1 and 2 are both called 'speed'"),
    ("speed,up\n1,2\n3\n", "line 3: it has 1 values, but the header 2"),
    ("speed\n1\n\nfast\n", "line 4, column speed: it is 'fast', but it must be a number"),
    ("speed,up\n1,\n", "line 2, column up: it is empty, but it must be a number"),
    ("speed\n1\nnan\n", "line 3, column speed: it is nan, but it must be a number"),
    ("speed\n1\n0\n", "line 3, column speed: it is 0, but it must be above 0"),
    ("latency\ninf\n", "line 2, column latency: it is inf, but it must be a number from 0 up"),
    ("late\n1.5\n", "line 2, column late: it is 1.5, but it must lie between 0 and 1"),
    ("late,garbage\n0.5,0.5\n0.6,0.5\n", "line 3: its never_starts, dropout, late, garbage must not come to more than 1"),
    ("client,speed\n0,1\n0,2\n", "line 3, column client: it is 0, but it has a row already"),
    ("client,speed\n0,1\n2,2\n", "line 3, column client: it is 2, but with 2 rows it must lie between 0 and 1"),
    ("client,speed\n0.5,1\n", "line 2, column client: it is 0.5, but it must be a whole number from 0 up"),
    ("speed\n", "has no rows"),
    ("", "has no rows"),
]

BAD_SESSIONS = [
    ("client,online\n0,1\n", "has no column 'offline'; it needs client, online, offline"),
    ("client,online,offline\n0,5,5\n", "line 2, column offline: it is 5, but it must come after online"),
    ("client,online,offline\n0,-1,5\n", "line 2, column online: it is -1, but it must lie between 0 and 90 seconds"),
    ("client,online,offline\n0,1,91\n", "line 2, column offline: it is 91, but it must lie between 0 and 90 seconds"),
    ("client,online,offline\n0,6,9\n1,0,9\n0,1,7\n", "line 2, column online: it is 6, but the client is online already"),
]


@pytest.mark.parametrize(("text", "message"), BAD_DEVICES)
def test_a_bad_file_of_devices_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "devices.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Trace(str(path)).draw(0, 1)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("text", "message"), BAD_SESSIONS)
def test_a_bad_file_of_sessions_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sessions.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        fw.Population(availability=Sessions(str(path), period=90)).draw(0, 1)
    assert message in str(caught.value)


def test_bad_parquet_files(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "devices.parquet"
    for columns, message in (
        ({"speed": ["1", "2"]}, "column speed: it holds string, but it must hold numbers"),
        ({"speed": [1.0, None]}, "row 2, column speed: it is nan, but it must be a number"),
        ({"speed": [1, -2]}, "row 2, column speed: it is -2, but it must be above 0"),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(DataError, match=message):
            Trace(str(path)).draw(0, 1)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Trace(str(path)).draw(0, 1)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Trace(str(tmp_path / "devices.csv")).draw(0, 1)
    with pytest.raises(DataError, match=r"is neither a \.csv nor a \.parquet file"):
        Trace(str(tmp_path / "devices.txt")).draw(0, 1)
    (tmp_path / "devices.csv").write_bytes(b"speed\n\xff\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        Trace(str(tmp_path / "devices.csv")).draw(0, 1)
    for name in ("devices.txt", "no folder/devices.csv", "no folder/devices.parquet"):
        with pytest.raises(DataError):
            UNEVEN.draw(0, 1).save(tmp_path / name)


def test_a_recording_of_too_few_devices(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text("speed\n1\n2\n")
    with pytest.raises(UsageError, match=r"has 2 clients, but there are 3; give fewer clients, or sample=True"):
        Trace(str(tmp_path / "devices.csv")).draw(0, 3)


# A million clients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UNEVEN, TWO], ids=["one class", "two"])
def test_a_million_clients_are_arrays(kind: Any) -> None:
    devices = kind.draw(0, 1_000_000)
    arrays = [value for value in vars(devices).values() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in arrays) + devices.calendar.nbytes == devices.nbytes < 60e6
    assert all(a.dtype.itemsize <= 4 for a in arrays)
    online = devices.online(40_000.5)
    assert np.array_equal(online, np.flatnonzero(devices.available(40_000.5)))
    some = online[::997]
    assert devices.available(40_000.5, some).all()
    assert len(devices.fates(0, 1, some).kind) == len(some)


# By name -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "population",
        "population(speed=lognormal(median=100, sigma=1.0), up=1000.0, dropout=0.05)",
        "population(speed=zipf(exponent=1.1, levels=9), availability=diurnal(share=uniform(low=0.1, high=0.5), spread=0.5))",
        "population(latency=exponential(mean=0.1), availability=sessions(file='a b.csv', period=604800.0, sample=True))",
        "trace(file='phones.parquet', sample=True, availability=diurnal, jitter=lognormal(median=1, sigma=0.1))",
        "mixture(kinds=[population(speed=20), population(speed=pareto(minimum=100, shape=2))], shares=(0.25, 0.75))",
    ],
)
def test_a_population_is_its_text(text: str) -> None:
    value = population.population(text)
    assert population.spell(value) == text
    assert population.population(value) is value


class Steps:
    """A distribution of one's own."""

    def quantile(self, u: Any) -> Any:
        return np.where(u < 0.5, 1.0, 3.0)

    def support(self) -> tuple[float, float]:
        return 1.0, 3.0


def test_a_distribution_of_ones_own() -> None:
    assert set(fw.Population(speed=Steps()).draw(0, 50).speed) == {1, 3}
    with pytest.raises(UsageError, match="not a fedweave Distribution"):
        fw.Population(speed="builtins:dict")  # type: ignore[arg-type]


def test_texts_and_constants_in_python() -> None:
    assert fw.Population(speed="lognormal(median=100, sigma=1)") == fw.Population(speed=LogNormal(100, 1))  # type: ignore[arg-type]
    assert population.population("population(speed=constant(value=3))") == fw.Population(speed=3)
    assert fw.Population(availability="diurnal") == fw.Population(availability=Diurnal())  # type: ignore[arg-type]
    assert Mixture(["population", "population(speed=1)"], [0.5, 0.5]).kinds[1] == fw.Population(speed=1)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("population(speed=0)", "speed is 0; it must be above 0"),
        ("population(speed=uniform(low=0, high=0))", "it must be above 0"),
        ("population(speed=uniform(low=-1, high=5))", "which reaches from -1 to 5; it must lie from 0 up"),
        ("population(latency=constant(value=1e999))", "latency is inf; it must be finite"),
        ("population(dropout=1.2)", "dropout is 1.2; it must lie between 0 and 1"),
        ("population(dropout=exponential(mean=0.1))", "which reaches from 0 to inf; it must lie between 0 and 1"),
        ("population(late=0.6, garbage=uniform(low=0, high=0.5))", "may come to 1.1 together"),
        ("population(speed=True)", "speed is True; give a number or a distribution"),
        ("population(speed=lognormal(median=-1, sigma=1))", "median is -1; it must be above 0"),
        ("population(speed=zipf(exponent=1, levels=2.5))", "levels is 2.5"),
        ("population(availability=diurnal(share=2))", "share is 2; it must lie between 0 and 1"),
        ("population(availability=diurnal(period=0))", "period is 0; it must lie between 1 and 2,000,000 seconds"),
        ("population(availability=sessions(file='a.csv', period=0))", "period is 0; it must be from 1 up, or None"),
        ("population(availability=3)", "availability is 3; give an Availability or a name such as 'diurnal'"),
        ("population(speed=[1, 2])", "speed is [1, 2]; give a number or a distribution"),
        ("mixture(kinds=[population], shares=[1])", "1 kinds and 1 shares; give 2 to 16 kinds"),
        ("mixture(kinds=[population, population], shares=[0.5, 0.4])", "come to 0.9; they must come to 1"),
        ("mixture(kinds=population, shares=[0.5, 0.4])", "kinds and shares of a mixture are lists"),
        ("mixture(kinds=[population, population], shares=[1.5, -0.5])", "a share is 1.5"),
        ("mixture(kinds=[population, 3], shares=[0.5, 0.5])", "population is 3; give a Population"),
    ],
)
def test_values_out_of_range(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        population.population(text)
    assert message in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'speed'"):
        population.population("population(sped=3)")
    with pytest.raises(UnknownName, match="no distribution called 'gauss'"):
        population.population("population(speed=gauss(mean=3))")
    with pytest.raises(UnknownName, match="no population called 'gauss'"):
        population.population("mixture(kinds=[gauss], shares=[1])")


def test_times_and_counts_out_of_range() -> None:
    devices = UNEVEN.draw(0, 2)
    for at in (-1, math.nan, math.inf):
        with pytest.raises(UsageError, match="The time is"):
            devices.available(at)
    with pytest.raises(UsageError, match="clients is -1"):
        UNEVEN.draw(0, -1)
    assert len(UNEVEN.draw(0, 0)) == 0
    assert UNEVEN.draw(0, 0).next_change(5) == math.inf
