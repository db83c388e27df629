# SPDX-License-Identifier: Apache-2.0
"""What the pages say of the contract, checked in the loop that they show."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import fedweave as fw

LOOP = Path(__file__).parents[2] / "docs" / "snippets" / "loop_by_hand.py"


@pytest.mark.parametrize("steps", [1, 5])
def test_every_hook_defaults_to_fedavg(steps: int) -> None:
    page = runpy.run_path(str(LOOP))
    found = page["train"](fw.Algorithm(), steps=steps, rounds=7)
    np.testing.assert_array_equal(found, page["train"](fw.FedAvg(), steps=steps, rounds=7))
    w = np.zeros(3)
    total = sum(len(y) for _, y in page["clients"])
    for _ in range(7):
        models = []
        for x, y in page["clients"]:
            local = w.copy()
            for _ in range(steps):
                local -= 0.1 * x.T @ (x @ local - y) / len(y)
            models.append(len(y) / total * local)
        w = sum(models)
    np.testing.assert_allclose(found, w, rtol=1e-12)
