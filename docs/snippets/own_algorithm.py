# SPDX-License-Identifier: Apache-2.0
"""An algorithm of one's own: FedAvg whose server keeps a momentum, and a proximal pull on every local step."""

# --8<-- [start:own-algorithm]
from dataclasses import dataclass

import fedweave as fw


@dataclass(frozen=True)
class MyMomentum(fw.Algorithm):
    """FedAvg with a server momentum ``beta`` and a local pull ``mu`` to where the round began."""

    beta: float = 0.9
    mu: float = 0.0

    def init(self, weights):
        return fw.State(weights=weights, velocity=weights * 0)

    def correct(self, grad, y, ask, mine):
        return grad + self.mu * (y - ask.weights)

    def step(self, state, aggregate, cohort):
        velocity = self.beta * state.velocity + aggregate.delta
        return state.replace(weights=state.weights + velocity, velocity=velocity)


# --8<-- [end:own-algorithm]

# --8<-- [start:use]
split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.3), clients=20, seed=0)
settings = dict(model="2nn", data=split, local=fw.Local(lr=0.1), cohort=0.5, rounds=15, seed=0)
mine = fw.simulate(algorithm=MyMomentum(beta=0.5, mu=0.01), **settings)
same = fw.simulate(algorithm=MyMomentum(beta=0.0), **settings)
fedavg = fw.simulate(algorithm=fw.FedAvg(), **settings)
for name, value in fedavg.weights.items():  # without momentum and pull it is FedAvg, up to rounding
    assert abs(same.weights[name] - value).max() < 1e-4
# --8<-- [end:use]

# --8<-- [start:battery]
from fedweave import battery

battery.check(MyMomentum(beta=0.5, mu=0.01))
# --8<-- [end:battery]
assert mine.model_hash != fedavg.model_hash
assert mine.history[-1].metrics["accuracy"] > 0.7
print(mine.history[-1].metrics, fedavg.history[-1].metrics)
