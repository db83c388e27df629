# SPDX-License-Identifier: Apache-2.0
"""A coordinator's process under a large model, by the benchmark's own clients."""

from __future__ import annotations

import network
import pytest

MIB = 64


@pytest.mark.slow
def test_a_coordinator_needs_no_memory_for_its_model() -> None:
    """Beside what it has before the first client, chunks that are under way and a few blocks. Each copy of the model would be
    another 64 MiB, its sum in float64 128."""
    bench = network.Bench(MIB << 18, 3, 2)
    bench.run(every=0.01)
    assert bench.base > 0
    assert bench.anonymous - bench.base <= 3 * MIB
    assert bench.mapped <= 2 * MIB
