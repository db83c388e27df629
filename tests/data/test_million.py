# SPDX-License-Identifier: Apache-2.0
"""A million clients cost bytes each, not objects."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

import fedweave as fw


@pytest.mark.slow
@pytest.mark.parametrize("how", ["iid", "dirichlet(alpha=0.5)", "classes(k=2)", "lognormal(sigma=1.0)", "natural", "shards"])
def test_a_million_clients_split_in_bytes_per_client(how: str) -> None:
    clients, each = 1_000_000, 4
    rng = np.random.default_rng(0)
    data = fw.data.from_arrays(
        np.zeros((clients * each, 1), np.float32),
        rng.integers(0, 10, clients * each),
        columns={"client": np.repeat(np.arange(clients, dtype=np.int32), each)},
    )
    data = dataclasses.replace(data, natural="client")
    tracemalloc.start()
    split = fw.data.partition(data, how, clients=None if how == "natural" else clients, seed=0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert split.clients == clients
    assert split.sizes.min() >= 1
    assert (np.bincount(split.order, minlength=len(data)) == 1).all()
    assert held < clients * 64  # 4 examples of 4 bytes, an offset, a name
    assert peak < clients * each * 200
    assert "1,000,000" in split.describe()


@pytest.mark.slow
def test_synthetic_data_of_many_clients_is_one_mapped_copy() -> None:
    tracemalloc.start()
    data = fw.data.load("synthetic", clients=100_000, examples_per_client=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.x_test is not None
    assert len(data) + len(data.x_test) == 400_000
    assert isinstance(data.x_train, np.memmap)
    assert peak < data.x_train.nbytes / 2
    assert fw.data.partition(data, "natural").clients == 100_000
