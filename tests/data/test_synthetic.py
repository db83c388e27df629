# SPDX-License-Identifier: Apache-2.0
"""The synthetic generator against a slow one, against the paper's moments and beside the authors' published data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedweave.data import Dataset, load, partition
from fedweave.errors import UsageError
from fedweave.randomness import generator


def test_synthetic_has_the_papers_shape() -> None:
    data = load("synthetic", alpha=1, beta=1)
    assert data.source == "synthetic"
    assert load("synthetic(alpha=0, beta=0.5)").source == "synthetic(alpha=0.0, beta=0.5)"
    assert load("synthetic(alpha=0, beta=0.5)").identity == load("synthetic(alpha=0.0, beta=0.5)").identity
    split = partition(data, "natural")
    assert split.clients == 30
    assert data.x_train.shape[1:] == (60,)
    assert split.test_sizes is not None
    sizes = split.sizes + split.test_sizes
    assert sizes.min() >= 50
    assert (split.sizes == (sizes * 0.9).astype(int)).all()


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2), st.integers(1, 40), st.booleans(), st.integers(0, 9), st.sampled_from([None, 1, 7]))
def test_synthetic_labels_are_those_of_each_clients_own_linear_model(
    alpha: float, beta: float, clients: int, iid: bool, seed: int, each: int | None
) -> None:
    options = {"alpha": alpha, "beta": beta, "clients": clients, "iid": iid, "seed": seed, "examples_per_client": each}
    data = load("synthetic", **options)
    again = load(data.source or "")
    np.testing.assert_array_equal(data.x_train, again.x_train)
    np.testing.assert_array_equal(data.y_train, again.y_train)
    split = partition(data, "natural")
    assert split.clients == clients
    # Slow reference: the generator as its table of symbols reads, client by client, from the same numbers.
    shared = generator(seed, "synthetic/shared")
    one_model = shared.standard_normal((60, 10)), shared.standard_normal(10)
    rng = generator(seed, "synthetic/clients")
    sizes = generator(seed, "synthetic/sizes").lognormal(4, 2, clients).astype(int) + 50 if each is None else [each] * clients
    noise = [rng.standard_normal((n, 60), np.float32) for n in sizes]
    u, centre = alpha * rng.standard_normal(clients), beta * rng.standard_normal(clients)
    weights = [u[k] + rng.standard_normal((60, 10)) for k in range(clients)]
    biases = [u[k] + rng.standard_normal(10) for k in range(clients)]
    means = [centre[k] + rng.standard_normal(60) for k in range(clients)]
    for k, n in enumerate(sizes):
        x = noise[k] * np.sqrt(np.arange(1, 61) ** -1.2) + (0 if iid else means[k])
        weight, bias = one_model if iid else (weights[k], biases[k])
        y = (x @ weight + bias).argmax(1)
        cut = max(1, int(0.9 * n))
        np.testing.assert_allclose(split.client(k)[0], x[:cut], rtol=1e-4, atol=1e-5)
        assert (split.client(k)[1] == y[:cut]).mean() > 0.99  # a near tie may fall to either side in another precision
        if each != 1:
            own = split.test_client(k)
            assert own is not None
            np.testing.assert_allclose(own[0], x[cut:], rtol=1e-4, atol=1e-5)


def test_the_spread_of_synthetic_data_is_that_of_the_paper() -> None:
    def moments(beta: float) -> tuple[float, np.ndarray]:
        data = load("synthetic", alpha=0, beta=beta, clients=2000, examples_per_client=20)
        x = data.x_train.reshape(2000, 18, 60)
        centres = x.mean(1)
        return float(centres.mean(1).var()), x.var(1, ddof=1).mean(0)

    # v_k ~ N(B_k, 1), B_k ~ N(0, beta): the mean of its 60 places has variance beta^2 + 1/60 (and a little of x's own).
    for beta in (0.0, 1.0, 2.0):
        between, within = moments(beta)
        assert between == pytest.approx(beta**2 + 1 / 60, rel=0.15, abs=0.002)
        np.testing.assert_allclose(within, np.arange(1, 61) ** -1.2, rtol=0.08)  # Sigma_jj = j^-1.2


def published(folder: Path, name: str) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Sizes, labels per client and pooled features of the authors' published test half."""
    held = json.loads((folder / "fedprox-synthetic" / f"{name}.mytest.json").read_text())
    parts = [held["user_data"][user] for user in held["users"]]
    x = np.concatenate([np.array(part["x"]) for part in parts])
    return np.array(held["num_samples"]), [np.unique(part["y"]) for part in parts], x


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("synthetic_iid", {"iid": True}),
        ("synthetic_0_0", {"alpha": 0, "beta": 0}),
        ("synthetic_0.5_0.5", {"alpha": 0.5, "beta": 0.5}),
        ("synthetic_1_1", {"alpha": 1, "beta": 1}),
    ],
)
def test_synthetic_data_look_like_the_authors(real: Path, name: str, options: dict[str, float]) -> None:
    sizes, labels, x = published(real, name)
    ours: list[Dataset] = [load("synthetic", seed=seed, **options) for seed in range(40)]
    splits = [partition(data, "natural") for data in ours]

    def between(theirs: float, all_ours: list[float]) -> None:
        low, high = min(all_ours), max(all_ours)
        assert low <= theirs <= high, (low, theirs, high)

    tests = [split.test_sizes for split in splits if split.test_sizes is not None]
    between(len(sizes), [len(test) for test in tests])
    between(sizes.min(), [test.min() for test in tests])
    between(np.median(sizes), [float(np.median(test)) for test in tests])
    between(sizes.sum(), [test.sum() for test in tests])
    seen = [np.mean([len(np.unique(held[1])) for k in range(30) if (held := split.test_client(k))]) for split in splits]
    assert abs(np.mean([len(one) for one in labels]) - np.mean(seen)) < 3.5 * np.std(seen)
    # The authors' clients lie as far apart as beta, a standard deviation, says; so do ours, by the moments tested above.
    centres = np.array([part.mean() for part in np.split(x, np.cumsum(sizes)[:-1])])
    beta = 0 if options.get("iid") else options["beta"]
    expected = np.sqrt(beta**2 + (0 if options.get("iid") else 1 / 60))
    assert centres.std() == pytest.approx(expected, rel=0.35, abs=0.01)
    assert x.shape[1] == 60
    between(float(x.std()), [float(data.x_test.std()) for data in ours if data.x_test is not None])
    # The first feature's spread within and between clients together falls to the last's.
    drawn = [data.x_test for data in ours if data.x_test is not None]
    between(float(x[:, 0].std() / x[:, -1].std()), [float(one[:, 0].std() / one[:, -1].std()) for one in drawn])


def test_synthetic_refuses_what_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in (
        ({"alpha": -1}, "alpha is -1"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"clients": 0}, "clients is 0"),
        ({"examples_per_client": 0}, "examples_per_client is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"clients": 10**4, "examples_per_client": 10**9}, "GiB"),
    ):
        with pytest.raises(UsageError, match=said):
            load("synthetic", **options)


def test_alpha_raises_all_logits_alike_and_so_changes_no_label() -> None:
    none, much = load("synthetic(alpha=0)"), load("synthetic(alpha=1.5)")
    np.testing.assert_array_equal(none.x_train, much.x_train)
    assert (none.y_train == much.y_train).mean() > 0.999


def test_large_synthetic_data_are_mapped_and_equal_to_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    again = load("synthetic", clients=1100, examples_per_client=3)  # more than one block of clients
    assert not isinstance(again.x_train, np.memmap)
    monkeypatch.setattr("fedweave.data.synthetic._IN_MEMORY", 0)
    plain = load("synthetic", clients=1100, examples_per_client=3)
    assert isinstance(plain.x_train, np.memmap)
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
