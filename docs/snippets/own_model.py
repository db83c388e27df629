# SPDX-License-Identifier: Apache-2.0
"""Training a model of one's own: anything that makes an nn.Module."""

# --8<-- [start:own-model]
from torch import nn

import fedweave as fw


def small_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))


split = fw.data.partition(fw.data.load("digits"), fw.IID(), clients=10, seed=0)
result = fw.simulate(model=small_cnn, data=split, local=fw.Local(lr=0.1), cohort=5, rounds=10)
print({name: weight.shape for name, weight in result.weights.items()})
# --8<-- [end:own-model]
assert result.weights["0.weight"].shape == (8, 1, 3, 3)
assert result.history[-1].metrics["accuracy"] > 0.8
