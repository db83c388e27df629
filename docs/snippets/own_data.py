# SPDX-License-Identifier: Apache-2.0
"""Training on arrays of one's own: one pair (x, y) per client."""

import numpy as np

import fedweave as fw

rng = np.random.default_rng(0)


def clinic(examples: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(shift, 1.0, size=(examples, 4)).astype(np.float32)
    return x, (x[:, 0] - x[:, 1] > 0).astype(np.int64)


# --8<-- [start:own-data]
clinics = [clinic(120, 0.0), clinic(60, 0.5), clinic(300, -0.5)]
split = fw.data.from_clients(clinics, test=clinic(200, 0.0))
local = fw.Local(lr=0.5, epochs=2)
result = fw.simulate(model="logistic", data=split, local=local, cohort=1.0, rounds=20, seed=0)
print(result.history[-1].metrics)
# --8<-- [end:own-data]
assert result.history[-1].metrics["accuracy"] > 0.9
