# SPDX-License-Identifier: Apache-2.0
"""FedAvg on handwritten digits, twenty clients with unlike labels."""

# --8<-- [start:quickstart]
import fedweave as fw

data = fw.data.load("digits")
split = fw.data.partition(data, fw.Dirichlet(alpha=0.3), clients=20, seed=0)
result = fw.simulate(
    model="2nn",
    data=split,
    algorithm=fw.FedAvg(),
    local=fw.Local(lr=0.1, epochs=1, batch_size=10),
    cohort=0.25,
    rounds=40,
    target=("accuracy", 0.9),
    seed=0,
)
print(result.rounds_to_target)
print(result.history[-1].metrics["accuracy"], result.model_hash)
# --8<-- [end:quickstart]
assert result.rounds_to_target is not None
assert result.history[-1].metrics["accuracy"] >= 0.9
